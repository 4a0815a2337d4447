// A file of one's own, dropped on the page or chosen: sent to the service for a first look, which stores nothing.

import { ask } from "./api.js";
import { byId, el, fill } from "./dom.js";
import { drawBefore, drawOurs, listNote } from "./lists.js";
import { failed, say } from "./saying.js";
import { count, failuresInWords, several } from "./words.js";

const SHOWN = 10;

/** Watch the file field and the whole page. openList(list, name): asked to take a list over into the page proper. */
export function watchFiles(openList) {
  const drop = byId("drop");
  const holdsFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const look = (file) => file && preview(file, openList);
  let depth = 0;
  const show = (on) => (drop.hidden = !on);

  byId("file").addEventListener("change", (event) => look(event.target.files[0]));
  addEventListener("dragenter", (event) => holdsFile(event) && show(++depth > 0));
  addEventListener("dragleave", (event) => holdsFile(event) && show(--depth > 0));
  addEventListener("dragover", (event) => holdsFile(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    depth = 0;
    show(false);
    look(event.dataTransfer.files[0]);
  });
}

async function preview(file, openList) {
  const place = byId("preview");
  place.hidden = false;
  place.parentElement.classList.add("open");
  place.setAttribute("aria-busy", "true");
  fill(place, el("p", { class: "soft" }, `Reading ${file.name} …`));
  try {
    const answer = await ask("POST", "preview", new Blob([file], { type: "text/csv" }));
    draw(place, file, answer, openList);
    say(`${file.name}: ${several(answer.lists.length, "list")} below.`);
    place.focus();
  } catch (error) {
    fill(place, el("h3", {}, file.name));
    if (error.status === 401) {
      failed(error, `${file.name}: `); // beside the form for the key
    } else {
      place.append(el("p", { class: "problem", role: "alert" }, error.words ? error.words() : String(error)));
      place.focus();
    }
  }
  place.removeAttribute("aria-busy");
}

function draw(place, file, answer, openList) {
  const kinds = {
    candidates: "candidates, ranked for their users",
    events: "events: each user as a newcomer who did these",
  };
  const holder = el("div", {});
  const choice = el(
    "select",
    {
      id: "preview-user",
      onchange: () => drawList(holder, answer.lists[choice.selectedIndex], file, answer.kind, openList),
    },
    answer.lists.map((list) => el("option", {}, list.user_id)),
  );
  fill(
    place,
    el(
      "div",
      { class: "lists-head" },
      el("h3", {}, file.name),
      el("button", { type: "button", class: "link", onclick: () => close(place) }, "Close"),
    ),
    el(
      "p",
      {},
      `Read as ${kinds[answer.kind] ?? answer.kind}. ${several(answer.lists.length, "list")} of the first users.`,
    ),
    answer.notes?.length
      ? el(
          "ul",
          { class: "notes", "aria-label": "Notes" },
          answer.notes.map((text) => el("li", {}, text)),
        )
      : null,
    answer.lists.length
      ? el("div", { class: "line" }, el("label", { for: "preview-user" }, "User of the file"), choice)
      : null,
    holder,
  );
  if (answer.lists.length) drawList(holder, answer.lists[0], file, answer.kind, openList);
}

function close(place) {
  fill(place);
  place.hidden = true;
  place.parentElement.classList.remove("open");
  byId("file").value = "";
  byId("file").focus();
}

function drawList(holder, list, file, kind, openList) {
  const before = el("ol", { class: "rows", role: "list", "aria-label": `Before, ${list.user_id}` });
  const ours = el("ol", { class: "rows", role: "list", "aria-label": `Now, ${list.user_id}` });
  const open =
    kind === "candidates" &&
    el(
      "button",
      { type: "button", class: "main", onclick: () => openList(list, file.name) },
      `Open with sliders, history and reasons`,
    );
  fill(
    holder,
    failuresInWords(list).map((text) => el("p", { class: "problem" }, text)),
    el(
      "div",
      { class: "pair" },
      el("section", { class: "before", "aria-label": "Before" }, el("h4", {}, "Before"), before),
      el(
        "section",
        { class: "ours", "aria-label": "Now" },
        el("h4", {}, "Now"),
        el("p", { class: "soft" }, listNote(list.items, SHOWN)),
        ours,
      ),
    ),
    el(
      "div",
      { class: "buttons" },
      list.items.length > SHOWN
        ? el("p", { class: "soft" }, `The first ${SHOWN} of ${count(list.items.length)} are shown.`)
        : null,
      open,
    ),
  );
  drawBefore(before, list.items, SHOWN);
  drawOurs(ours, list.items, SHOWN, new Map(), null);
  if (!list.items.length) fill(ours, el("li", { class: "row" }, `There is no list for ${list.user_id}.`));
}
