// Before anything is painted: the colours that were chosen here last. Else the system's, by CSS.
(function () {
  "use strict";
  let chosen = null;
  try {
    chosen = localStorage.getItem("helix_mq.theme");
  } catch {
    // Storage is switched off: then as the system has it.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
