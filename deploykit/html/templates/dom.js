// What every page needs to build its document. Text is always set as text, never as markup.

const byId = (id) => document.getElementById(id);

const readJson = (id) => JSON.parse(byId(id).textContent);

/** An element with properties and children; strings among them become text. */
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

/** A bar that is filled to a part of its length. */
const makeBar = (part) => {
  const fill = make("span");
  fill.style.width = `${100 * part}%`;
  return make("span", { className: "bar" }, fill);
};

// Control characters, and those that turn the direction of the text around them.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;

/** A text with the characters that nobody sees written as escapes, so that no name hides them. */
const visible = (text) =>
  text.replace(UNSEEN, (unseen) => "\\u" + unseen.charCodeAt(0).toString(16).padStart(4, "0"));

/** A text of a stranger's, kept from changing the direction of what stands beside it. */
const stranger = (text) => make("bdi", {}, visible(text));

const formatCount = (count) => count.toLocaleString("en");

// A narrow space that does not break, as the page's own percentages have it.
const formatPercent = (part, digits = 1) => (100 * part).toFixed(digits) + "\u202f%";

const plural = (count, noun) => `${formatCount(count)} ${noun}${count === 1 ? "" : "s"}`;
