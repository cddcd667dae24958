"""Training loops of other people, a tiny model in each: the losses are the same with opreg and without it.

docs/trainers.md has the line that each takes. What is not installed is skipped: the suite's own environment has
transformers and accelerate.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision_for_cpu
from torch import Tensor, nn

import opreg


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No network, no settings of this machine, and nothing that is left in the environment or in the folder."""
    torch._dynamo.reset()
    for name in ("HF_HUB_OFFLINE", "WANDB_DISABLED", "YOLO_OFFLINE"):
        monkeypatch.setenv(name, "1")
    for name in ("BACKEND", "MODE", "USE_FULLGRAPH", "USE_DYNAMIC", "USE_REGIONAL_COMPILATION"):
        monkeypatch.delenv(f"ACCELERATE_DYNAMO_{name}", raising=False)
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    opreg.use(False)


def library(name: str) -> Any:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    torchvision_for_cpu.torchvision()
    return importlib.import_module(name)


def same_curves(run: Callable[..., list[float]], **compiled: Any) -> dict[str, int]:
    """Trains plainly, with opreg.use(), and compiled where options for that are given. How often each op ran."""
    expected = run()
    assert len(set(expected)) > 1  # it does train
    with opreg.use() as used:
        assert run() == pytest.approx(expected, rel=1e-4)
    if compiled:
        assert run(**compiled) == pytest.approx(expected, rel=1e-4)
    counts: dict[str, int] = {}
    for entry in used.report.swapped:
        counts[entry.op] = counts.get(entry.op, 0) + (entry.times or 0)
    return counts


def tiny_llama(transformers: Any) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.LlamaConfig(vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    return transformers.LlamaForCausalLM(config)


def sentences() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 50, (12, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def test_transformers(tmp_path: Path) -> None:
    library("accelerate")
    transformers = library("transformers")

    def run(**options: Any) -> list[float]:
        transformers.set_seed(0)
        arguments = transformers.TrainingArguments(
            str(tmp_path), max_steps=3, logging_steps=1, per_device_train_batch_size=4, learning_rate=1e-2,
            report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", **options,
        )  # fmt: skip
        trainer = transformers.Trainer(tiny_llama(transformers), arguments, train_dataset=sentences())
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    counts = same_curves(run, torch_compile_backend="opreg")
    assert counts == {"cross_entropy": 3, "swish": 3}
    assert sorted(s.op for s in opreg.last_report().swapped) == ["cross_entropy", "swiglu"]


def test_accelerate() -> None:
    accelerate = library("accelerate")

    def run(**options: Any) -> list[float]:
        torch.manual_seed(0)
        accelerate.state.AcceleratorState._reset_state(True)
        accelerator = accelerate.Accelerator(cpu=True, **options)
        model = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 3))
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
        x, y, losses = torch.randn(16, 4), torch.randint(0, 3, (16,)), []
        for _ in range(3):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        return losses

    assert same_curves(run, dynamo_backend="opreg") == {"cross_entropy": 3, "swish": 3}
    assert [s.op for s in opreg.last_report().swapped] == ["swish"]
    os.environ["ACCELERATE_DYNAMO_BACKEND"] = "opreg"  # what `accelerate launch` sets
    run()
    assert accelerate.state.AcceleratorState().dynamo_plugin.to_kwargs()["backend"] == "opreg"
    with pytest.raises(ValueError, match="NO_SUCH"):
        accelerate.Accelerator(dynamo_backend="no_such")


def test_lightning(tmp_path: Path) -> None:
    lightning = library("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.losses = nn.Sequential(nn.Linear(4, 6), nn.Mish(), nn.Linear(6, 3)), list[float]()

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    def run(backend: str | None = None) -> list[float]:
        lightning.seed_everything(0)
        module = Module()
        if backend:
            module.net.compile(backend=backend)
        data = torch.utils.data.TensorDataset(torch.randn(12, 4), torch.randint(0, 3, (12,)))
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=str(tmp_path),
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(data, 4))
        return module.losses

    assert same_curves(run, backend="opreg") == {"cross_entropy": 3, "mish": 3}


def timm_task(timm: Any) -> Callable[..., list[float]]:
    tasks = pytest.importorskip("timm.task")

    def run(loss: str = "bce", backend: str | None = None) -> list[float]:
        torch.manual_seed(0)
        model = timm.create_model("test_efficientnet", num_classes=3)
        criterion = timm.loss.BinaryCrossEntropy(smoothing=0.1) if loss == "bce" else nn.CrossEntropyLoss()
        task = tasks.ClassificationTask(model, criterion=criterion, verbose=False)
        if backend:
            task.compile(backend=backend)
        optimizer, losses = torch.optim.SGD(task.parameters(), 0.1), []
        images, classes = torch.randn(4, 3, 32, 32), torch.randint(0, 3, (4,))
        for _ in range(2):
            value = task(images, classes)["loss"]
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())
        return losses

    return run


def test_timm() -> None:
    run = timm_task(library("timm"))
    assert same_curves(run)["binary_cross_entropy_with_logits"] == 2
    assert same_curves(lambda: run("ce"))["cross_entropy"] == 2


@pytest.mark.slow
def test_timm_compiled() -> None:
    """Half a minute: thirty convolutions are compiled."""
    assert same_curves(timm_task(library("timm")), backend="opreg")["binary_cross_entropy_with_logits"] == 2


def test_trl(tmp_path: Path) -> None:
    library("accelerate")
    transformers, trl = library("transformers"), library("trl")
    datasets = importlib.import_module("datasets")
    tokenizers = importlib.import_module("tokenizers")
    vocabulary = {f"w{i}": i for i in range(50)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w3"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2")

    def run(**options: Any) -> list[float]:
        transformers.set_seed(0)
        rows = [" ".join(f"w{i}" for i in row["input_ids"].tolist()) for row in sentences()]
        arguments = trl.SFTConfig(
            str(tmp_path), max_steps=3, logging_steps=1, per_device_train_batch_size=4, learning_rate=1e-2,
            report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, save_strategy="no", loss_type="nll",
            gradient_checkpointing=False, **options,
        )  # fmt: skip
        trainer = trl.SFTTrainer(
            tiny_llama(transformers),
            arguments,
            train_dataset=datasets.Dataset.from_dict({"text": rows}),
            processing_class=tokenizer,
        )
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    # its loss is one of its own, over the head in pieces
    assert same_curves(run, torch_compile_backend="opreg") == {"swish": 3}


def test_ultralytics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library("ultralytics")
    import numpy as np
    from PIL import Image
    from ultralytics import YOLO
    from ultralytics.engine.trainer import BaseTrainer

    # it wants the nms of torchvision's C++ library
    monkeypatch.setattr(BaseTrainer, "validate", lambda self: ({}, 0.0))

    for part in ("images", "labels"):
        (tmp_path / "data" / part).mkdir(parents=True)
    pixels = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(pixels.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / f"data/images/{i}.png")
        (tmp_path / f"data/labels/{i}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (tmp_path / "data.yaml").write_text(f"path: {tmp_path}/data\ntrain: images\nval: images\nnames: {{0: thing}}\n")

    def run() -> list[float]:
        losses: list[float] = []
        model = YOLO("yolov8n.yaml")
        model.add_callback("on_train_batch_end", lambda trainer: losses.append(float(trainer.loss.sum())))
        model.train(
            data=str(tmp_path / "data.yaml"), epochs=2, imgsz=64, batch=2, workers=0, optimizer="SGD", seed=0,
            device="cpu", amp=False, plots=False, save=False, verbose=False, project=str(tmp_path), exist_ok=True,
            pretrained=False,
        )  # fmt: skip
        return losses

    counts = same_curves(run)
    assert counts.pop("binary_cross_entropy_with_logits") == 4
    assert counts.keys() == {"swish"}  # the box losses are its own
