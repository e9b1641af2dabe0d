// The files without a prediction, by what is wrong with them.

const MOST_LISTED = 100;

const failureKind = ([status, failed]) => {
  const listed = failed
    .slice(0, MOST_LISTED)
    .map((row) =>
      make(
        "li",
        {},
        make("span", { className: "path" }, stranger(row.name)),
        make("span", { className: "quiet" }, stranger(row.reason)),
      ),
    );
  const link = make("a", { href: hashOf({ filter: "failed", status }) }, "show in the gallery");
  const rest = failed.length - listed.length;
  const summary = make(
    "summary",
    {},
    `${status} `,
    make("span", { className: "badge bad" }, formatCount(failed.length)),
  );
  return make(
    "details",
    { open: true },
    summary,
    make("ul", { className: "failed-files" }, ...listed),
    make("p", { className: "quiet" }, rest > 0 ? `and ${formatCount(rest)} more: ` : "", link),
  );
};

const showFailures = () => {
  const kinds = Map.groupBy(
    rows.filter((row) => row.failed),
    (row) => visible(row.status),
  );
  const sorted = [...kinds].sort(([, a], [, b]) => b.length - a.length);
  byId("failures").hidden = sorted.length === 0;
  byId("failure-kinds").append(...sorted.map(failureKind));
};
