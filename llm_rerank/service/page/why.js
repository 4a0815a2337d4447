// Why an item stands where it stands: the exact parts, what the history did, and its neighbours. Opens inside its row.

import { el, fill } from "./dom.js";
import { bars } from "./lists.js";
import { failuresInWords, nameOf, percent, signed, spoken } from "./words.js";

const MOST_PARTS = 8;
const MOST_HISTORY = 6;

let nextId = 0;

/**
 * Open the reasons in a row, or close them where they are open. explain(other): gives the service's explanation, of
 * the item alone (null) or against another item. neighbours: {above, below}, items or null.
 */
export async function toggleWhy(item, row, button, { explain, neighbours }) {
  if (row.querySelector(":scope > .why")) return closeWhy(row);
  const panel = el("div", {
    class: "why",
    id: `why-${++nextId}`,
    role: "region",
    "aria-label": `Why ${nameOf(item)}`,
    tabindex: "-1",
  });
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    closeWhy(row);
  });
  fill(panel, el("p", { class: "soft" }, "Asking for the reasons …"));
  row.append(panel);
  button.setAttribute("aria-expanded", "true");
  button.setAttribute("aria-controls", panel.id);
  button.onkeydown = (event) => event.key === "Escape" && closeWhy(row);
  try {
    const reasons = await explain(null);
    fill(panel, ofItem(item, reasons), against(item, neighbours, explain), closing(row));
  } catch (error) {
    fill(panel, el("p", { role: "alert" }, error.words ? error.words() : String(error)), closing(row));
  }
  if (document.activeElement === button) panel.focus({ preventScroll: true });
}

/** Close the reasons of a row and go back to the button that opened them. */
export function closeWhy(row) {
  const panel = row.querySelector(":scope > .why");
  if (!panel) return;
  const inside = panel.contains(document.activeElement);
  panel.remove();
  const button = row.querySelector("button[aria-expanded]");
  button?.setAttribute("aria-expanded", "false");
  button?.removeAttribute("aria-controls");
  if (inside) button?.focus();
}

const closing = (row) =>
  el("button", { type: "button", class: "link", onclick: () => closeWhy(row) }, "Close the reasons");

function ofItem(item, { score, probability, groups, contributions, history, degraded }) {
  const told = ["Score ", el("b", {}, signed(score, 3)), ", probability ", el("b", {}, percent(probability)), ". "];
  return [
    failuresInWords({ degraded }).map((text) => el("p", { class: "problem" }, text)),
    el("p", {}, told, "These parts add up to the score:"),
    groupBars(groups),
    partsTable("Strongest parts", contributions, score),
    historyList("What they did, by what the score would lose without it", history),
  ];
}

const groupBars = (groups) => bars(groups, Math.max(1e-9, ...Object.values(groups).map(Math.abs)), 3);

function partsTable(caption, contributions, total) {
  const strongest = [...contributions].sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const shown = strongest.slice(0, MOST_PARTS).filter((part) => part.value !== 0);
  const rest = strongest.filter((part) => !shown.includes(part)).reduce((sum, part) => sum + part.value, 0);
  const rows = [
    ...shown.map((part) => [spoken(part.name), spoken(part.group), part.value]),
    ["all other parts", "", rest],
    ["together", "", total],
  ];
  return el(
    "table",
    {},
    el("caption", {}, caption),
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("th", { scope: "col" }, "Part"),
        el("th", { scope: "col" }, "Group"),
        el("th", { scope: "col", class: "number" }, "Adds"),
      ),
    ),
    el(
      "tbody",
      {},
      rows.map(([name, group, value]) =>
        el(
          "tr",
          {},
          el("th", { scope: "row" }, name),
          el("td", {}, group),
          el("td", { class: "number" }, signed(value, 3)),
        ),
      ),
    ),
  );
}

function historyList(caption, history) {
  const effects = (history ?? []).filter((part) => Math.abs(part.effect) >= 5e-4);
  if (!effects.length) return el("p", { class: "soft" }, "No single item of the history changes this score.");
  return [
    el("h4", {}, caption),
    el(
      "ul",
      { class: "effects" },
      effects
        .slice(0, MOST_HISTORY)
        .map((part) =>
          el("li", {}, el("span", { class: "number" }, signed(part.effect, 3)), el("span", {}, nameOf(part))),
        ),
    ),
  ];
}

/** Buttons for the neighbours above and below; each opens what decides between the two. */
function against(item, { above, below }, explain) {
  const answer = el("div", { class: "versus", role: "status" });
  const ask = (other, side) =>
    other &&
    el(
      "button",
      {
        type: "button",
        class: "quiet",
        onclick: async (event) => {
          const button = event.currentTarget;
          button.setAttribute("aria-busy", "true");
          try {
            fill(answer, versus(item, other, await explain(other)));
          } catch (error) {
            fill(answer, el("p", {}, error.words ? error.words() : String(error)));
          }
          button.removeAttribute("aria-busy");
        },
      },
      `Why ${side} ${other.rank}, ${nameOf(other)}?`,
    );
  const buttons = [ask(above, "below"), ask(below, "above")].filter(Boolean);
  return buttons.length
    ? [el("h4", {}, "Against its neighbours"), el("div", { class: "buttons" }, buttons), answer]
    : null;
}

function versus(item, other, { versus: told }) {
  if (!told) return el("p", {}, "The service gives no comparison of these two.");
  // diversity and caps may put the lower score above
  const against = told.difference > 0 === item.rank > other.rank && told.difference !== 0;
  return [
    el("p", {}, told.sentence ? `${told.sentence}.` : `The score differs by ${signed(told.difference, 3)}.`),
    against
      ? el("p", { class: "soft" }, "Their scores alone would order them the other way: diversity, or a rule, decided.")
      : null,
    groupBars(told.groups),
    historyList("History that spoke for the one over the other", told.history),
  ];
}
