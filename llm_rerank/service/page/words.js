// Numbers, times and facts in words. Nothing of the page.

const MINUS = "−";

/** How many, with separators. */
export const count = (number) => Number(number).toLocaleString("en-GB");

/** "1 item", "2 items". */
export const several = (number, noun, plural = `${noun}s`) => `${count(number)} ${number === 1 ? noun : plural}`;

/** A part of a score with its sign: "+0.82", "−0.10"; "–" where there is none. */
export function signed(value, digits = 2) {
  if (typeof value !== "number") return "–";
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? text : (value > 0 ? "+" : MINUS) + text;
}

/** A probability as percent with two or three figures: "4.2 %", "0.013 %"; "–" where there is none. */
export function percent(value) {
  if (typeof value !== "number") return "–";
  const hundred = value * 100;
  if (hundred === 0) return "0 %";
  if (hundred >= 10) return `${hundred.toFixed(1)} %`;
  if (hundred < 1e-4) return "under 0.0001 %";
  const digits = Math.max(0, 1 - Math.floor(Math.log10(hundred)));
  return `${hundred.toFixed(Math.min(digits, 6))} %`;
}

const SPELLINGS = new Map([
  ["als", "ALS"],
  ["ease", "EASE"],
  ["knn", "kNN"],
  ["mf", "MF"],
]);

/** A name as the service writes it, in words: "cross_encoder", "text_ease × item_support", "sales_7d". */
export function spoken(name) {
  const words = String(name).replaceAll("cross_encoder", "cross-encoder").split(/[_ ]/);
  return words.map((word) => SPELLINGS.get(word) ?? word.replace(/^(\d+)d$/, "$1 days")).join(" ");
}

/** "a", "a and b", "a, b and c". */
export const listed = (names) =>
  names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names[names.length - 1]}`;

/** Title of an item, or its id where it has none. */
export const nameOf = (item) => item.title || String(item.item_id ?? "");

const LEAST_TIME_S = 1e8; // 1973; smaller numbers are positions in a sequence, as some shops keep them

/** A moment in seconds since 1970 (UTC), or a plain position. */
export function moment(value) {
  if (typeof value === "string" && Number.isNaN(Number(value))) value = Date.parse(value) / 1000;
  const seconds = Number(value);
  if (!Number.isFinite(seconds) || value === null) return "";
  if (seconds < LEAST_TIME_S) return `position ${count(seconds)}`;
  return new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short", timeZone: "UTC" }).format(
    new Date(seconds * 1000),
  );
}

// The service keeps of a kind the strength of evidence for a liking; these are the strengths that have one name.
const KINDS = new Map([
  [0.1, "search"],
  [0.2, "view"],
  [0.3, "click"],
  [0.6, "favourite"],
  [0.7, "cart"],
  [1, "purchase"],
]);

/** What kind of event it was, by its name or by its weight; what is rated and as strong as a purchase may be either. */
export function kindOf(event) {
  if (event.event) return event.event;
  const weight = Number(event.event_weight);
  if (weight < 0) return "dislike";
  if (weight === 1 && typeof event.rating === "number") return "rating";
  return KINDS.get(Math.round(weight * 100) / 100) ?? `weight ${weight.toFixed(2)}`;
}

/** A move for the eye: "▲ 2", "▼ 3", "=". */
export function arrow(by) {
  if (by === null) return "new";
  return by > 0 ? `▲ ${by}` : by < 0 ? `▼ ${-by}` : "=";
}

/** A move for the ear: "up 2 from 5". */
export function moveInWords({ from, by }) {
  if (by === null) return "not in the list before";
  if (by === 0) return "where it was before";
  return `${by > 0 ? "up" : "down"} ${Math.abs(by)}, was ${from}`;
}

const RISKS = {
  missed_target: "the share of lists of which no retrieved target is kept",
  false_positives: "the mean share of a list’s candidates that are kept and are no target",
  false_discovery: "the mean share of a list’s kept items that are no target, of lists that keep any",
};

/** How the list was cut, in one sentence. facts: of the answer; kept, all: counts of the list that is shown. */
export function cutInWords(facts, kept, all) {
  const least = facts.least_probability;
  if (typeof least !== "number") return `Nothing is cut: ${count(kept)} of ${count(all)} kept.`;
  const bounds = [
    [facts.n_added_by_min_items, "added so that no list is too short"],
    [facts.n_removed_by_max_items, "taken out so that no list is too long"],
  ];
  const changed = bounds.filter(([n]) => n).map(([n, what]) => `, ${count(n)} ${what}`);
  const rule = `those with a probability of at least ${percent(least)}`;
  return `${count(kept)} of ${count(all)} kept: ${rule}${changed.join("")}.`;
}

const STAND_INS = {
  upstream_order: "Scoring failed altogether: this is the order as it came in, without scores.",
  popularity: "Scoring failed altogether: these are the best sellers, without scores.",
  nothing: "Everything failed, and nothing could stand in: there is no list.",
};

/** What is wrong with a list, in sentences: what failed, what stood in. */
export function failuresInWords({ degraded, fallback }) {
  if (fallback)
    return [STAND_INS[fallback] ?? `Scoring failed altogether; what stood in is called ${spoken(fallback)}.`];
  return degraded?.length ? [`Made without ${listed(degraded.map(spoken))}, which failed: the rest decided.`] : [];
}

/** The guarantee of the cut, or why there is none: {holds, text}. */
export function guaranteeInWords(facts) {
  const promise = facts.guarantee;
  if (!promise) {
    const why = facts.no_guarantee || "the service gives no reason";
    return { holds: false, text: `No guarantee: ${why}.` };
  }
  if (typeof promise === "string") return { holds: true, text: `Guaranteed: ${promise}` };
  const risk = RISKS[promise.risk] ?? `the risk ${promise.risk}`;
  const sure = count(Math.round((1 - promise.delta) * 1e4) / 1e4);
  const tail = promise.conditional_on ? ` It holds for ${promise.conditional_on}.` : "";
  return {
    holds: true,
    text:
      `Guaranteed: with probability at least ${sure} over the draw of the ${count(promise.n_cases)} held-out cases, ` +
      `${risk} is at most ${promise.alpha} in expectation (observed ${promise.observed_risk.toPrecision(3)}).${tail}`,
  };
}

const TOP = 10;
const TOP_WORDS = "the first ten";

/** Sort changes by what they mean for the first ten: what came in, best first, what went out, what moved within. */
function topOf(changes) {
  const inTop = (rank) => rank !== null && rank <= TOP;
  const top = changes.filter(({ from, to }) => inTop(from) || inTop(to));
  return {
    came: top.filter(({ from }) => !inTop(from)).sort((a, b) => a.to - b.to),
    went: top.filter(({ to }) => !inTop(to)).sort((a, b) => a.from - b.from),
    moved: top.filter(({ from, to }) => inTop(from) && inTop(to)),
    further: changes.length - top.length,
  };
}

/**
 * What changed in the list, in one or two sentences, of the first ten where anything did; changes as `changesBetween`
 * gives them.
 */
export function changesInWords(changes) {
  if (!changes.length) return "The list stays as it was.";
  const { came, went, moved, further } = topOf(changes);
  const name = ({ item, from, to }) => `${nameOf(item)} (${from ?? "new"} → ${to ?? "gone"})`;
  const parts = [
    came.length && `${listed(came.map(name))} came in`,
    went.length && `${listed(went.map(name))} went out`,
    moved.length && `${several(moved.length, "item")} changed places`,
  ].filter(Boolean);
  if (!parts.length) return `No change in ${TOP_WORDS}; ${several(further, "change")} further down.`;
  return `In ${TOP_WORDS}: ${parts.join("; ")}.${further ? ` Further down ${several(further, "change")}.` : ""}`;
}

/** The same in a few words, without names. */
export function changesInShort(changes) {
  const { came, moved } = topOf(changes);
  if (!came.length && !moved.length) return `${TOP_WORDS.replace("t", "T")} stay as they were.`;
  const parts = [came.length && `${several(came.length, "item")} new`, moved.length && `${count(moved.length)} moved`];
  return `In ${TOP_WORDS}: ${listed(parts.filter(Boolean))}.`;
}

/** A part of an address as text; as it stands where somebody typed a lone "%". */
export function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
