// A browser reads no other page of a book that was opened from a folder (file://), but it runs a script from there:
// texts.js holds the text of every page, and the search quotes from that.
if (location.protocol === "file:" && document.querySelector("#search-results")) {
  const texts = new Promise((done) => {
    const script = document.createElement("script");
    script.src = "_static/texts.js";
    script.onload = () => done(window.BOOK_TEXTS);
    document.head.append(script);
  });
  window.fetch = async (address) => new Response((await texts)[String(address).split("/").pop()]);
}

// What scrolls can be scrolled with the keyboard.
const SCROLLS = "pre, .cell_output, .cell_output .output, .table-wrapper, .book-widget, math[display=block]";
function letKeysScroll() {
  for (const box of document.querySelectorAll(SCROLLS)) {
    const scrolls = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight;
    if (scrolls) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
new ResizeObserver(letKeysScroll).observe(document.body);
document.addEventListener("toggle", letKeysScroll, true);

// On a narrow window the two side bars are opened by labels, which no key reaches by itself; Escape closes them.
for (const [kind, name] of [["nav", "All pages"], ["toc", "On this page"]]) {
  for (const label of document.querySelectorAll(`label.${kind}-overlay-icon`)) {
    Object.assign(label, { role: "button", tabIndex: 0, ariaLabel: name });
    label.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      label.click();
    });
  }
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") for (const bar of document.querySelectorAll(".sidebar-toggle")) bar.checked = false;
});

// An attention widget draws itself after the page has loaded: with a menu that has no name, and with white text on its
// buttons, be they pale or dark.
function mendWidget(widget) {
  for (const menu of widget.querySelectorAll("select")) menu.ariaLabel = "Direction of attention";
  for (const button of widget.querySelectorAll("button")) {
    const [red, green, blue] = getComputedStyle(button).backgroundColor.match(/[\d.]+/g).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    const colour = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "black" : "white";
    if (button.style.color !== colour) button.style.color = colour;
  }
}
for (const widget of document.querySelectorAll(".book-widget")) {
  const watch = { childList: true, subtree: true, attributes: true, attributeFilter: ["style"] };
  new MutationObserver(() => mendWidget(widget)).observe(widget, watch);
  mendWidget(widget);
}

// Paper has no button that unfolds an exercise.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("article details:not([open])")];
  for (const each of folded) each.open = true;
});
addEventListener("afterprint", () => { for (const each of folded) each.open = false; });
