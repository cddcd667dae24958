// The gallery's filter: a button a task, and the task in the address, so that a link can lead to it.
document.addEventListener("DOMContentLoaded", () => {
  const buttons = [...document.querySelectorAll(".filter button")];
  const cards = [...document.querySelectorAll(".card-of-op")];
  if (!buttons.length) return;
  const choose = (task) => {
    for (const b of buttons) b.classList.toggle("chosen", b.dataset.task === task);
    for (const c of cards) c.hidden = task !== "" && !c.classList.contains(task);
  };
  for (const b of buttons)
    b.addEventListener("click", () => {
      choose(b.dataset.task);
      history.replaceState(null, "", b.dataset.task ? `#${b.dataset.task}` : location.pathname);
    });
  const asked = location.hash.slice(1);
  if (buttons.some((b) => b.dataset.task === asked)) choose(asked);
});
