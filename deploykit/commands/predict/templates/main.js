// Put the page together, and follow the address.

/** Whether the address names a view: without a "=" it is a link to a place on the page. */
const namesView = () => location.hash.includes("=");

/** Show the view that the address names, and lead the reader to it. */
const followAddress = () => {
  if (!namesView()) return;
  showView(parseView(location.hash));
  byId("gallery").scrollIntoView();
};

makeControls();
showClasses();
showFailures();
byId("gallery").hidden = false;
showView(DEFAULT_VIEW);
followAddress();
addEventListener("hashchange", followAddress);
// A link to where the address already is changes nothing, and leads there all the same.
addEventListener("click", ({ target }) => {
  if (target.closest("a")?.hash === location.hash) followAddress();
});
