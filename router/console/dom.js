// Making and keeping elements. Whatever comes from the cluster gets in as text, never as markup:
// there is no other way in here.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** An element with attributes (`class`, `title`, ...) and children: nodes, or anything else as text. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

/** Sets the text if it is another: selections and screen readers are left in peace otherwise. */
export function say(node, text) {
  const wanted = String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
}

/** Replaces the children, unless `sign` says that they are the same as before. */
export function refill(node, sign, make) {
  if (node.dataset.sign === sign) return;
  node.dataset.sign = sign;
  node.replaceChildren(...make());
}

export function attribute(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, String(value));
}

/**
 * Has `parent` show one child per item, in order, keeping the elements of items that stay: focus and
 * scroll position stay with them. `make` gives an element, `update` fills it.
 */
export function sync(parent, items, keyOf, make, update) {
  const old = parent.keyed ?? new Map();
  const keyed = new Map();
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    if (keyed.has(key)) continue;
    const child = old.get(key) ?? make(item);
    keyed.set(key, child);
    update(child, item);
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
  }
  for (const [key, child] of old) if (!keyed.has(key)) child.remove();
  parent.keyed = keyed;
}
