// What logits mean, as deploykit's heads have it, and whether they are the recorded ones.

const softmax = (logits) => {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
};

const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));

const argmax = (values) => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);

/** The numbers of the classes that an image's logits decide for. */
export const decide = (head, logits) => {
  if (head.kind === "single-label") return [argmax(logits)];
  const above = Array.from(logits, (logit, i) => logit > head.limits[i]);
  if (head.kind === "binary") return [above[0] ? 1 : 0];
  return [...above.keys()].filter((i) => above[i]);
};

/** One probability a class. */
export const probabilitiesOf = (head, logits) => {
  if (head.kind === "single-label") return softmax(logits);
  const each = Array.from(logits, sigmoid);
  return head.kind === "binary" ? [sigmoid(-logits[0]), each[0]] : each;
};

/** The numbers of the classes, the best first. */
export const ranked = (head, logits) => {
  if (head.kind === "binary") return decide(head, logits)[0] === 1 ? [1, 0] : [0, 1];
  return [...logits.keys()].sort((a, b) => logits[b] - logits[a]);
};

const largestOf = (values) => values.reduce((largest, value) => Math.max(largest, value), 0);

/**
 * Compare logits with the recorded ones, a list of each, and judge them as a self-test does.
 *
 * An image that is not decidable has a margin within rounding: one such may change its decision.
 */
export const compare = (head, recorded, found, { decidable, max_relative_error }) => {
  const scale = largestOf(recorded.map((logits) => largestOf(Array.from(logits, Math.abs))));
  const largest = largestOf(
    recorded.map((logits, image) =>
      largestOf(Array.from(logits, (logit, i) => Math.abs(logit - found[image][i]))),
    ),
  );
  const same = recorded.map(
    (logits, image) => decide(head, logits).join() === decide(head, found[image]).join(),
  );
  const flips = same.filter((each, image) => !each && decidable[image]).length;
  const undecidable = same.filter((each) => !each).length - flips;
  // Where all is 0, nothing differs. What is not a number does not pass.
  const relative = largest === 0 ? 0 : largest / scale;
  const passed = flips === 0 && undecidable <= 1 && relative <= max_relative_error;
  return { same, relative, passed };
};
