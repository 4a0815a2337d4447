// What moved between two lists, why, and where the cut lies: arithmetic on plain values, nothing of the page.

const SMALLEST_CHANGE = 1e-9; // smaller ones are rounding

/** The move of one item: places risen (below 0: fallen), null where it was not there before. */
export function moveOf(item) {
  const from = item.before_rank ?? null;
  const by = from === null ? null : from - item.rank;
  return { from, to: item.rank, by, way: by === null ? "new" : by > 0 ? "up" : by < 0 ? "down" : "same" };
}

/** Names of the parts of the score, in the order in which the service gives them. */
export function groupsOf(items) {
  return [...new Set(items.flatMap((item) => Object.keys(item.components ?? {})))];
}

/**
 * Each item's parts of the score against the mean of the list: Map from item_id to {group: number | null}. A part that
 * is the same for all moves nobody, so that what is left says why one item stands where it stands.
 */
export function standingsOf(items) {
  const groups = groupsOf(items);
  const means = new Map(
    groups.map((group) => {
      const known = items.map((item) => item.components?.[group]).filter((value) => typeof value === "number");
      return [group, known.reduce((sum, value) => sum + value, 0) / Math.max(known.length, 1)];
    }),
  );
  const standing = (item, group) => {
    const part = item.components?.[group];
    return typeof part === "number" ? part - means.get(group) : null;
  };
  return new Map(
    items.map((item) => [item.item_id, Object.fromEntries(groups.map((group) => [group, standing(item, group)]))]),
  );
}

/** The group that stands out most in the direction of the move, or null where none does: then others moved. */
export function reasonOf(move, standing) {
  const sign = move.way === "down" ? -1 : 1;
  const towards = (value) => (move.way === "same" ? Math.abs(value) : value * sign);
  let best = null;
  for (const [group, value] of Object.entries(standing))
    if (value !== null && towards(value) > Math.max(SMALLEST_CHANGE, best === null ? 0 : towards(standing[best])))
      best = group;
  return best;
}

/**
 * Where `kept` ends. items: by rank. after: rank of the last kept item, 0 where none is; nKept; nCutAbove: items above
 * that line which are cut all the same (diversity may put an item of small probability between kept ones).
 */
export function cutLine(items) {
  const kept = items.filter((item) => item.kept);
  const after = kept.length ? kept[kept.length - 1].rank : 0;
  return { after, nKept: kept.length, nCutAbove: items.filter((item) => !item.kept && item.rank < after).length };
}

/** The same items with `kept` by another least probability; what has no probability is never kept. */
export function keptAt(items, leastProbability) {
  return items.map((item) => ({
    ...item,
    kept: typeof item.probability === "number" && item.probability >= leastProbability,
  }));
}

/**
 * What changed from the list that was shown to the one that is shown now, farthest first: {item, from, to, by}; from is
 * null where the item came in, to is null where it went.
 */
export function changesBetween(earlier, later) {
  const was = new Map(earlier.map((item) => [item.item_id, item.rank]));
  const is = new Map(later.map((item) => [item.item_id, item.rank]));
  const changes = later
    .filter((item) => was.get(item.item_id) !== item.rank)
    .map((item) => ({ item, from: was.get(item.item_id) ?? null, to: item.rank }));
  const gone = earlier.filter((item) => !is.has(item.item_id)).map((item) => ({ item, from: item.rank, to: null }));
  const far = ({ from, to }) => (from === null || to === null ? 0 : Math.abs(from - to));
  return [...changes, ...gone]
    .map((change) => ({ ...change, by: change.from === null || change.to === null ? null : change.from - change.to }))
    .sort((a, b) => far(b) - far(a) || (a.to ?? Infinity) - (b.to ?? Infinity));
}

/** Decades that the slider of the least probability spans: the least one shown, rounded down; at most seven. */
export function decadesOf(items) {
  const known = items.map((item) => item.probability).filter((value) => typeof value === "number" && value > 0);
  const least = known.length ? Math.min(...known) : 1e-3;
  return Math.min(Math.max(Math.ceil(-Math.log10(least)), 2), 7);
}

/** Least probability at a place of the slider, 0 … 1: 0 keeps everything, the rest is logarithmic and ends at 1. */
export function probabilityAt(place, decades) {
  return place <= 0 ? 0 : 10 ** (decades * (place - 1));
}

/** Place of a probability on the slider, 0 … 1. */
export function placeOf(probability, decades) {
  if (!(probability > 0)) return 0;
  return Math.min(Math.max(1 + Math.log10(probability) / decades, 0), 1);
}
