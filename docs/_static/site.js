// What the theme and Sphinx leave unnamed for those who do not see the page.
document.addEventListener("DOMContentLoaded", () => {
  for (const toggle of document.querySelectorAll("summary > .toctree-toggle")) {
    const link = toggle.closest("li").querySelector("a");
    toggle.parentElement.setAttribute("aria-label", `Pages below ${link ? link.textContent.trim() : "this one"}`);
  }
  // The parameters of a long signature are set as a list of definitions without terms.
  for (const each of document.querySelectorAll("dt.sig > dl, dt.sig > dl > dd")) each.setAttribute("role", "presentation");
  if (typeof Search !== "undefined") Search._performSearch = headingsFirst(Search._performSearch);
});

// Sphinx ranks pages by single words, and knows a heading by a phrase only where that is half of it or more. A message
// is looked for by a part of it, or as it was printed, with names where its heading has {placeholders}: such headings
// come first, the shortest ahead. Results are shown from the last one on.
function headingsFirst(perform) {
  return (query, ...words) => {
    const results = perform(query, ...words);
    const phrase = query.toLowerCase().replace(/\s+/g, " ").trim();
    if (!phrase.includes(" ")) return results;
    const { alltitles, docnames, filenames, titles } = Search._index;
    const found = Object.entries(alltitles)
      .filter(([title]) => title.toLowerCase().includes(phrase) || isPrintedFrom(title.toLowerCase(), phrase))
      .sort(([one], [other]) => other.length - one.length)
      .flatMap(([title, places]) =>
        places.map(([file, anchor]) => {
          const shown = titles[file] === title ? title : `${titles[file]} > ${title}`;
          return [docnames[file], shown, anchor === null ? "" : `#${anchor}`, null, 100, filenames[file], "title"];
        }),
      );
    const places = new Set(found.map((each) => each[0] + each[2]));
    return [...results.filter((each) => !places.has(each[0] + each[2])), ...found];
  };
}

// Whether the text holds all that stands around a heading's placeholders, in its order.
function isPrintedFrom(title, text) {
  const parts = title.split(/\{[^}]*\}|…/).map((each) => each.trim());
  if (parts.length < 2 || parts.join("").length < 12) return false;
  let from = 0;
  return parts.every((part) => {
    const at = text.indexOf(part, from);
    from = at + part.length;
    return at >= 0;
  });
}
