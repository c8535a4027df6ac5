// Applies the chosen colours before the page is drawn; loaded in <head> without defer for that reason.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("script");
  try {
    const chosen = localStorage.getItem("curator-theme");
    if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  } catch {
    // Storage is blocked: the system's colours stay.
  }
})();
