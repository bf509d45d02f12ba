// What the theme and Sphinx leave unnamed for those who do not see the page.
document.addEventListener("DOMContentLoaded", () => {
  for (const toggle of document.querySelectorAll("summary > .toctree-toggle")) {
    const link = toggle.closest("li").querySelector("a");
    toggle.parentElement.setAttribute("aria-label", `Pages below ${link ? link.textContent.trim() : "this one"}`);
  }
  // The parameters of a long signature are set as a list of definitions without terms.
  for (const each of document.querySelectorAll("dt.sig > dl, dt.sig > dl > dd")) each.setAttribute("role", "presentation");
});
