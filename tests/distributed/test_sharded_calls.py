"""Sharded tensors and classes on processes of their own: every op, and what people do with them, equals one process."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import cases
import placements
import sharded_language_model
from opreg.registry import of_namespace
from processes import POOL

COLLECTIVES = Path(__file__).resolve().parents[2] / "benchmarks/collectives.py"


def test_random_placements() -> None:
    """``python tests/distributed/placements.py 1000`` is the long form."""
    made = POOL.run(placements.for_seconds, 8.0, 0)
    assert min(made) >= 10


def test_every_op_along_every_dimension() -> None:
    rows = POOL.run(placements.table)[0]
    assert {row.op for row in rows} == {op.short for op in of_namespace()}
    assert all(row.equal for row in rows)
    ways = {(row.op, row.split): row.way for row in rows}
    # what has to stay where it is, of each kind
    stays = [
        "mish dimension -1",
        "focal_loss dimension -2",
        "giou_loss dimension -2",
        "dice_loss batch",
        "ctc_loss batch",
        "rnnt_loss batch",
    ]
    stays += [f"{op} classes" for op in ("cross_entropy", "arcface_loss", "distillation_loss")]
    stays += [f"{op} classes" for op in ("linear_cross_entropy", "linear_log_prob")]
    assert {ways[tuple(name.split(" ", 1))] for name in stays} == {"split"}
    assert ways["ohem_cross_entropy", "batch"] == ways["lovasz_hinge_loss", "1"] == "gathered"


@pytest.mark.parametrize("classes", [8, 9, 5, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(
    ("weighted", "soft"),
    [(False, False), (True, False), (False, True), (True, True)],
    ids=["", "weight", "soft", "both"],
)
def test_vocab_parallel(classes: int, smoothing: float, weighted: bool, soft: bool) -> None:
    POOL.run(cases.vocab_parallel, classes, smoothing, weighted, soft)


@pytest.mark.parametrize(
    "case",
    [
        cases.masked_scores_and_wrong_indices,
        cases.second_derivative,
        cases.normalizer_over_microbatches,
        cases.without_autograd,
        cases.second_derivative_of_sharded,
        cases.beside_the_mesh,
        cases.backward_op,
        cases.compiled_and_autocast,
        cases.averages,
        cases.low_precision,
        cases.strided_shards,
        cases.data_parallel,
        cases.tensor_parallel,
        cases.checkpointed_and_compiled,
        cases.partial_fc,
        cases.several_results,
        cases.where_nothing_counts,
    ],
    ids=lambda case: case.__name__,
)
def test_equals_one_process(case: object) -> None:
    POOL.run(case)


def test_collectives_stay_in_one_graph() -> None:
    """Forward two all-reduces a loss; backward one, of the gradient in the features."""
    seen = POOL.run(cases.one_graph)[0]
    assert [name.split(".")[0] for name in seen if "wait" not in name] == ["all_reduce"] * 5


def test_messages_are_those_that_are_written_down() -> None:
    """Two messages of three numbers a row, where others send three; the scores stay."""
    counted = subprocess.run([sys.executable, COLLECTIVES, "8"], capture_output=True, text=True, check=True).stdout
    assert counted in (COLLECTIVES.parent / "results/collectives.md").read_text()
    assert "| 8 | opreg, DTensor | 2 | 3.00 | 21.0 |" in counted


def test_whichever_is_imported_first() -> None:
    program = """
        import opreg, sys
        assert "torch.distributed.tensor" not in sys.modules
        from torch.distributed.tensor import DTensor
        assert opreg.get("mish").value in DTensor._op_dispatcher._custom_op_handlers
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_placements_of_results() -> None:
    assert POOL.run(cases.placements_of_results)[0] == {
        "none": "(Shard(dim=0),)",
        "mean": "(Replicate(),)",
        "activation": "(Shard(dim=1),)",
        "batch and classes": "(Shard(dim=0), Replicate())",
        "gradient": "(Shard(dim=0), Shard(dim=1))",
    }


def test_says_what_it_gathers() -> None:
    why = "and gathered from 4 processes, for"
    decided = "which examples are hard is decided over the whole batch"
    boxes = f"is sharded along dimension 1 {why} each value needs all of it"
    assert POOL.run(cases.says_what_it_gathers)[0] == [
        f"giou_loss: input {boxes}",
        f"giou_loss: target {boxes}",
        f"ohem_cross_entropy: input is sharded along dimension 0 {why} {decided}",
        f"ohem_cross_entropy: target is sharded along dimension 0 {why} {decided}",
    ]


def test_ops_of_ones_own() -> None:
    by_rule, by_function, of_positives, counted, centred = POOL.run(cases.ops_of_ones_own)[0]
    assert by_rule == counted == ""
    assert "its shape rule does not say what the dimensions stand for" in by_function
    assert "its mean is not that of its values: declare what it divides by" in of_positives
    assert "one of its samples gives other values in parts than as a whole" in centred


REFUSED = {
    "target": r"vocab_parallel_cross_entropy: expected target of shape \[4\] .*, got \[3\]",
    "number": "vocab_parallel_cross_entropy: expected [30] of 9 classes on process [0-3] of 4, got 2",
    "reduction": 'expected reduction "none", "mean" or "sum", got "avg"',
    "normalizer": 'expected reduction "mean" beside a normalizer, got "sum"',
    "smoothing": r"expected label_smoothing in \[0, 1\], got 2.0",
    "weight": r"expected weight of one entry a class, \[8\], got \[2\]",
    "head": r"expected input of shape \(..., D\) and local_weight of shape \(C_local, D\), got \[4, 2\] and \[2, 3\]",
    "plain": "cross_entropy: expected target to be a DTensor as input is, got a plain tensor; distribute_tensor or",
    "meshes": "mse_loss: expected input and target on one device mesh, got",
    "shapes": r"mse_loss: expected target that broadcasts with input, got \[8, 6\] and \[8, 5\]",
    "state": "cross_entropy_forward: expected plain tensors, got a DTensor",
    "in place": r"ema_update_: expected averages\[0\] that is sharded or replicated, .* got placements \(Partial",
    "option": "softmax_focal_loss: expected finite gamma >= 0, got -1",
    "constant": "cross_entropy: expected weight that does not require grad",
    "style": "LossParallel: expected a module of opreg.nn, such as opreg.nn.CrossEntropyLoss, got",
}


def test_refusals() -> None:
    said = POOL.run(cases.refusals)[0]
    assert said.keys() == REFUSED.keys()
    for name, message in REFUSED.items():
        assert re.search(message, said[name]), said[name]


def test_example() -> None:
    losses, difference = POOL.run(sharded_language_model.compare)[0]
    assert losses == sorted(losses, reverse=True)  # it learns
    assert difference < 1e-9
