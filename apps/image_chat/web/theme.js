// Before the first paint, so that a chosen theme does not flash the other one.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem("image-chat.theme");
  } catch {
    // Storage is refused: the system's theme it is.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
