// Elements, numbers and links. Strings from data only ever become text nodes or plain attributes, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

export const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Name and value pairs, with a title where there is a third.
export const factList = (entries) => el("dl", { class: "facts" }, entries.map(([name, value, title]) => el("div", null, el("dt", null, name), el("dd", { title }, value))));

export const MISSING = "—";
export const isNumber = (x) => typeof x === "number" && Number.isFinite(x);

const significant = (x, digits) => Number(x.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });

export function usd(x) {
  if (!isNumber(x)) return MISSING;
  if (x !== 0 && Math.abs(x) < 0.00005) return "<$0.0001";
  if (Math.abs(x) < 1) return `$${x.toFixed(4)}`;
  return `$${x.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;
}

export const percent = (x, digits = 1) => (isNumber(x) ? `${(100 * x).toFixed(digits)} %` : MISSING);
export const nats = (x) => (isNumber(x) ? x.toFixed(3) : MISSING);

export function seconds(x) {
  if (!isNumber(x)) return MISSING;
  const whole = Math.round(x);
  if (whole < 100) return `${significant(x, 3)} s`;
  if (whole < 7200) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${(x / 3600).toFixed(1)} h`;
}

export function count(x) {
  if (!isNumber(x)) return MISSING;
  for (const [size, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) if (Math.abs(x) >= size) return significant(x / size, 3) + unit;
  return significant(x, 3);
}

// -- the page and its data

// Airflow's own light/dark switch wins over the system's; both documents share one storage.
export function followTheme() {
  const follow = () => {
    const chosen = localStorage.getItem("theme");
    if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
    else delete document.documentElement.dataset.theme;
  };
  follow();
  window.addEventListener("storage", (event) => { if (event.key === "theme") follow(); });
}

export async function getJson(path) {
  const response = await fetch(path, { headers: { Accept: "application/json" }, credentials: "same-origin" });
  if (response.status === 401) throw new Error("You are not signed in to Airflow. Sign in, then reload this page.");
  if (!response.ok) throw new Error(`${path.split("?")[0]} answered ${response.status}. The api-server's log says why.`);
  return response.json();
}

// A command in one piece, with a button that copies it; where the browser forbids that, it is selected for the person to copy.
export function copyable(command) {
  const text = el("code", null, command), said = el("span", { role: "status", class: "said" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(command);
      said.textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(text);
      said.textContent = "Selected: copy it with Ctrl+C or ⌘C.";
    }
  };
  return el("div", { class: "command" }, text, el("button", { type: "button", onclick: copy }, "Copy"), said);
}

// Remembers which element with `data-keep` has the focus; what is returned gives it to the element that is so called after a redraw. With
// `orNear`, where that one is gone or disabled, a button beside it or the page's first one gets it: the keyboard is never sent back to the top.
export function keptFocus() {
  const kept = document.activeElement?.dataset?.keep;
  return (orNear = true) => {
    if (kept === undefined || document.activeElement !== document.body) return;
    const found = document.querySelector(`[data-keep="${CSS.escape(kept)}"]`);
    const next = found?.disabled ? found.parentElement.querySelector("button:not(:disabled)") : found;
    (next ?? (orNear ? document.querySelector("main button:not(:disabled)") : null))?.focus({ preventScroll: true });
  };
}

// Airflow frames this page in a sandbox without top navigation; a link that lives in the outer document may navigate it.
export function openOutside(url, newTab) {
  const host = window.parent.document;
  const link = host.createElement("a");
  link.href = url;
  if (newTab) Object.assign(link, { target: "_blank", rel: "noopener" });
  host.body.append(link);
  link.click();
  link.remove();
}

// -- one tooltip for the whole page, for the mouse and the keyboard alike

const tooltip = () => document.getElementById("tooltip");

export function showTip(lines, anchor) {
  const box = tooltip();
  box.replaceChildren(...lines.map((line, i) => el(i ? "div" : "strong", null, line)));
  box.hidden = false;
  const at = anchor.getBoundingClientRect();
  const size = box.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.left + at.width / 2 - size.width / 2), document.documentElement.clientWidth - size.width - 8);
  const above = at.top - size.height - 10;
  box.style.left = `${left}px`;
  box.style.top = `${above > 4 ? above : at.bottom + 10}px`;
}

export const hideTip = () => { tooltip().hidden = true; };

// Attributes that make a mark focusable, described and explained on hover and on focus.
export function tipped(lines) {
  const show = (event) => showTip(lines, event.currentTarget);
  return {
    tabindex: 0, "aria-label": lines.join(", "),
    onmouseenter: show, onfocus: show, onmouseleave: hideTip, onblur: hideTip,
    onkeyup: (event) => { if (event.key === "Escape") hideTip(); },
  };
}
