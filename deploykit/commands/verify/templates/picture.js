// The dots tell which image they are: to a pointer that is near, and to the arrow keys.

const NEAR = 14; // in the picture's own units

/** A dot's image in words; `[name, class, class, margin, movement, whether the margin decides]`. */
const tellPoint = ([name, before, after, margin, change, decidable]) => {
  const answer = make("span", {}, stranger(before));
  if (after !== before) answer.append(" → ", stranger(after));
  if (after !== before && !decidable) answer.append(" (undecidable)");
  return [
    make("strong", {}, stranger(name)),
    answer,
    make("span", {}, `margin ${margin}, moved ${change}`),
  ];
};

const nearestDot = (dots, { x, y }) => {
  const distance = (dot) => Math.hypot(dot.x - x, dot.y - y);
  const nearest = dots.reduce((a, b) => (distance(b) < distance(a) ? b : a));
  return distance(nearest) <= NEAR ? nearest : null;
};

const makeLive = (figure, points) => {
  const svg = figure.querySelector("svg");
  const tip = figure.querySelector(".tip");
  const ring = svg.querySelector(".focus");
  const dots = [...svg.querySelectorAll(".points circle")].map((circle, place) => ({
    x: circle.cx.baseVal.value,
    y: circle.cy.baseVal.value,
    place,
  }));
  if (dots.length === 0) return;
  let shown = null;

  const show = (dot) => {
    if (dot === shown) return;
    shown = dot;
    tip.hidden = dot === null;
    ring.setAttribute("visibility", dot === null ? "hidden" : "visible");
    if (dot === null) return;
    ring.setAttribute("cx", dot.x);
    ring.setAttribute("cy", dot.y);
    tip.replaceChildren(...tellPoint(points[dot.place]));
    const { width, height } = svg.viewBox.baseVal;
    const onTheRight = dot.x > width / 2;
    const below = dot.y > height / 2;
    tip.style.left = onTheRight ? "" : `calc(${(100 * dot.x) / width}% + 14px)`;
    tip.style.right = onTheRight ? `calc(${100 - (100 * dot.x) / width}% + 14px)` : "";
    tip.style.top = below ? "" : `${(100 * dot.y) / height}%`;
    tip.style.bottom = below ? `${100 - (100 * dot.y) / height}%` : "";
  };
  const step = (by) => {
    const last = dots.length - 1;
    const from = shown?.place ?? (by > 0 ? -1 : last + 1);
    show(dots[Math.min(Math.max(from + by, 0), last)]);
  };

  svg.addEventListener("pointermove", ({ clientX, clientY }) => {
    const place = new DOMPoint(clientX, clientY).matrixTransform(svg.getScreenCTM().inverse());
    show(nearestDot(dots, place));
  });
  svg.addEventListener("pointerleave", () => show(null));
  svg.addEventListener("blur", () => show(null));
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (event.key === "Escape") show(null);
    if (!by) return;
    event.preventDefault();
    step(by);
  });
};

readJson("points-data").forEach((points, place) => {
  const figure = byId(`picture-${place + 1}`);
  if (figure) makeLive(figure, points);
});
