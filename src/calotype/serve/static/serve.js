// The one script of the pages: it sends forms, follows runs and jobs as they go, and explains words. No build, no library.

const page = document.body.dataset, run = page.run;
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);

function made(name, attributes = {}, ...content) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined) element.setAttribute(key, value);
  element.append(...content);
  return element;
}

// Markup comes from our own server, which has escaped it.
function elements(markup) {
  const box = document.createElement("template");
  box.innerHTML = markup;
  return [...box.content.childNodes];
}

const SILENT = "The server does not answer.", ANEW = "The server was started anew; open the address that it has printed.";
const sentence = text => text[0].toUpperCase() + text.slice(1).replace(/\.?$/, ".");

async function ask(method, address, body, headers = {}) {
  const answer = await fetch(address, {method, body, headers}).catch(() => { throw new Error(SILENT); });
  const type = answer.headers.get("content-type") || "";
  const value = type.includes("json") ? await answer.json() : await answer.text();
  if (answer.ok) return value;
  const reason = [401, 421].includes(answer.status) ? ANEW : sentence(value?.error?.message || `the server answers with status ${answer.status}`);
  throw Object.assign(new Error(reason), {status: answer.status, field: value?.error?.param});
}
const send = (address, value, method = "POST") =>
  ask(method, address, JSON.stringify(value), {"Content-Type": "application/json"});

// The policy of the pages allows no style in attributes; a script may set one.
function styled(root) {
  for (const element of all("[data-style]", root)) element.style.cssText = element.dataset.style;
}

function fieldsOf(form) {
  const given = {};
  for (const input of all("[data-field]", form)) {
    if (input.value === "" || input.closest("[hidden]")) continue;
    const whole = ["seed", "seed_after", "count", "steps"].includes(input.dataset.field);
    given[input.dataset.field] = whole ? parseInt(input.value, 10) : input.type === "number" ? Number(input.value) : input.value;
  }
  return given;
}
const field = (form, name) => one(`[data-field=${name}]`, form);

// -- Words ------------------------------------------------------------------------------------------------------------

const OUTSIDE = "button, a, input, select, option, textarea, script, style, svg, pre, code, h1, .kicker, .term, #explained, label, nav, .runs, summary, .gallery, .setting";

// Terms, the names of settings and curves that have one, and a pattern that finds terms in a text, in the plural, too.
function readWords() {
  return readWords.asked ??= fetch("/words.json").then(answer => answer.json()).then(({terms, names}) => {
    const byLower = new Map(Object.keys(terms).map(term => [term.toLowerCase(), term]));
    const longest = [...byLower.keys()].sort((a, b) => b.length - a.length).map(term => term.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    const pattern = new RegExp(`(?<![\\p{L}\\d._-])(${longest.join("|")})(?:e?s)?(?![\\p{L}\\d_]|[.-][\\p{L}\\d])`, "giu");
    const named = text => { const name = text.toLowerCase().replace(/(-| to )\d+$/, ""); return names[name] ?? byLower.get(name); };
    return {terms, pattern, named, termOf: word => byLower.get(word.toLowerCase())};
  });
}

// Curves by their names where these are terms: in a drawing they cannot be explained.
function nameCurves(root, named) {
  for (const figure of all(".plot:not(:has(.names))", root)) {
    const names = all("polyline.line", figure).map(line => line.dataset.name).filter(named);
    if (names.length) one("figcaption", figure).append(made("span", {class: "names"}, ...names.map(name => made("span", {}, name))));
  }
}

async function explain(root) {
  const {pattern, named, termOf} = await readWords();
  nameCurves(root, named);
  for (const section of root.matches("section, header, .panel") ? [root] : [root, ...all("section", root)]) {
    const used = new Set(all(".term", section).map(term => term.dataset.term));
    const walker = document.createTreeWalker(section, NodeFilter.SHOW_TEXT);
    const texts = [];
    while (walker.nextNode()) if (!walker.currentNode.parentElement.closest(OUTSIDE)) texts.push(walker.currentNode);
    const mark = (word, term) => {
      used.add(term);
      word.replaceWith(made("button", {type: "button", class: "term", "data-term": term}, word.data));
    };
    for (let text of texts) {
      const term = text.parentElement.matches(".names span, table.words td:first-child, table.words td:nth-child(2)") && named(text.data);
      if (term) mark(text, term);  // each of them, also where a sentence before has it
      pattern.lastIndex = 0;
      for (let match; !term && (match = pattern.exec(text.data));) {
        if (used.has(termOf(match[1]))) continue;
        const word = text.splitText(match.index);
        text = word.splitText(match[0].length);
        mark(word, termOf(match[1]));
        pattern.lastIndex = 0;
      }
    }
  }
}

// The name of a field that is a term: no button, which inside a label would be another field, but it works as one.
async function explainFields(root = document) {
  const {termOf} = await readWords();
  for (const name of all(".field > span:not(:has(.term))", root)) {
    const term = termOf(name.textContent);
    if (term) name.replaceChildren(made("span", {role: "button", tabindex: "0", class: "term", "data-term": term}, name.textContent));
  }
}
document.addEventListener("keydown", event => {
  if (event.target.matches("span.term") && ["Enter", " "].includes(event.key)) { event.preventDefault(); showTerm(event.target); }
});

async function showTerm(button) {
  const [english, vietnamese] = (await readWords()).terms[button.dataset.term];
  showBeside(button, made("b", {}, button.dataset.term), made("p", {}, english), made("p", {lang: "vi"}, vietnamese));
}

function showBeside(button, ...content) {
  one("#explained")?.remove();
  const box = made("div", {id: "explained", popover: "auto", role: "note"}, ...content);
  (button.closest("dialog") || document.body).append(box);
  box.showPopover();
  const place = button.getBoundingClientRect(), size = box.getBoundingClientRect();
  const below = place.bottom + size.height + 8 < innerHeight;
  box.style.cssText = `position: fixed; margin: 0; left: ${Math.max(16, Math.min(place.left, innerWidth - size.width - 16))}px;` +
    `top: ${Math.max(8, below ? place.bottom + 6 : place.top - size.height - 6)}px`;
}

// -- Everywhere -------------------------------------------------------------------------------------------------------

document.addEventListener("click", async event => {
  const button = event.target.closest("button, span.term");
  if (!button) return;
  if (button.dataset.term) { event.preventDefault(); return showTerm(button); }
  if (button.dataset.copy !== undefined) return copyText(button);
  if (!button.dataset.post) return;
  await once(button, button.closest(".actions"), async () => {
    await send(button.dataset.post, {});
    if (button.dataset.then) location.href = button.dataset.then; else refreshAnyway();
  });
});

// Browsers lend the clipboard to pages of this machine alone; from another one the text is there to be copied, marked.
async function copyText(button) {
  const words = button.textContent, text = button.dataset.copy;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const box = made("textarea", {readonly: "", rows: "4", "aria-label": "To copy"});
    box.value = text;
    showBeside(button, box);
    return box.select();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = words; }, 1500);
}

// A form of a part of a page.
document.addEventListener("submit", event => {
  const form = event.target;
  if (!form.dataset.send) return;
  event.preventDefault();
  once(one("[type=submit]", form), form, async () => {
    await send(form.dataset.send, fieldsOf(form));
    one("output", form).textContent = "Asked …";
    refreshAnyway();
  });
});

// What a button asks for is asked once at a time; the button keeps the focus, which a disabled one would lose.
async function once(button, root, action) {
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true");
  accept(root);
  try { await action(); } catch (error) { refuse(root, error); }
  button.removeAttribute("aria-disabled");
}

// Why a request was refused stands beside the field that is wrong, else behind the buttons or, without a place for it, at the end.
function refuse(root, error) {
  if (!root.isConnected) root = one("main .actions:has(output)");  // that part of the page was shown anew meanwhile
  const box = error.field && field(root, error.field), output = one("output", root);
  if (!box && output) { output.textContent = error.message; output.className = "wrong"; return; }
  const note = made("small", {class: "wrong", id: `wrong-${error.field}`, role: "alert"}, error.message);
  if (!box) return root.append(note);
  box.after(note);
  box.setAttribute("aria-invalid", "true");
  box.setAttribute("aria-describedby", note.id);
  box.closest("details")?.setAttribute("open", "");
  box.focus();
}

function accept(root) {
  for (const note of all("small.wrong", root)) note.remove();
  for (const box of all("[aria-invalid]", root)) { box.removeAttribute("aria-invalid"); box.removeAttribute("aria-describedby"); }
  const output = one("output", root);
  if (output) output.textContent = output.className = "";
}

// Values of a plot at a place between its axes, in units of the drawing: it says in `data-axes` where these begin and end.
function readValues(figure, drawing, at, top) {
  const {x, y, left, right, top: above, bottom, width, height} = axesOf(drawing);
  const value = (axis, share) => axis[2] ? axis[0] * (axis[1] / axis[0]) ** share : axis[0] + share * (axis[1] - axis[0]);
  const lines = [];
  for (const line of all("polyline.line", drawing)) {
    const near = pointsOf(line).reduce((best, point) => Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best);
    const share = (height - bottom - near[1]) / (height - above - bottom);
    lines.push(`${line.dataset.name}  ${Number(value(y, share).toPrecision(3))}`);
  }
  const where = Math.round(value(x, (at - left) / (width - left - right))).toLocaleString("en");
  const reading = readingOf(figure);
  figure.dataset.at = at;
  reading.textContent = [`at ${where}`, ...lines].join("\n");
  const frame = figure.getBoundingClientRect(), box = drawing.getBoundingClientRect();
  const shift = box.left - frame.left + at * box.width / width + 14;
  reading.style.cssText = `top: ${top - frame.top + 12}px; left: ${Math.max(0, Math.min(shift, frame.width - reading.offsetWidth))}px`;
}
const axesOf = drawing => JSON.parse(drawing.dataset.axes);
const pointsOf = line => line.getAttribute("points").split(" ").map(point => point.split(",").map(Number));
// Screen readers read out what changes in a box that is there already.
function readingOf(figure) {
  for (const old of all(".reading")) if (old.parentElement !== figure) old.remove();
  return one(".reading", figure) ?? figure.appendChild(made("div", {class: "reading", "aria-live": "polite"}));
}
const unread = () => { for (const reading of all(".reading")) reading.remove(); };

// Under the pointer or a finger, which may be outside of all plots.
function readUnder(event) {
  const figure = event.target.closest?.(".plot"), drawing = figure && one("svg", figure);
  if (!drawing?.dataset.axes) return unread();
  const {left, right, width} = axesOf(drawing), box = drawing.getBoundingClientRect();
  const at = Math.min(Math.max((event.clientX - box.left) * width / box.width, left), width - right);
  readValues(figure, drawing, at, event.clientY);
}
for (const name of ["pointermove", "pointerdown"]) document.addEventListener(name, readUnder, {passive: true});

// The arrow keys lead from one point of any curve to the next, Home and End to the first and the last.
function readByKeys(event) {
  const figure = event.target, drawing = figure.matches?.(".plot") && one("svg", figure);
  const towards = {ArrowLeft: -1, ArrowRight: 1, Home: 1, End: -1}[event.key];
  if (!drawing || !towards || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const places = all("polyline.line", drawing).flatMap(pointsOf).map(point => point[0]).sort((a, b) => towards * (a - b));
  const before = event.key.startsWith("Arrow") ? figure.dataset.at : undefined;
  const next = before === undefined ? places[0] : places.find(place => towards * (place - before) > 0) ?? Number(before);
  readValues(figure, drawing, next, drawing.getBoundingClientRect().top);
}
document.addEventListener("keydown", readByKeys);
document.addEventListener("focusin", event => { if (event.target.matches?.(".plot[tabindex]")) readingOf(event.target); });
document.addEventListener("focusout", event => { if (event.target.matches?.(".plot")) unread(); });

// Plots take the focus, and say how they are read.
function focusable(root) {
  for (const figure of all(".plot:has([data-axes])", root)) {
    figure.tabIndex = 0;
    figure.setAttribute("aria-label", `${one("title", figure).textContent}: values by the arrow keys`);
  }
}

// -- The list ---------------------------------------------------------------------------------------------------------

const list = {by: 0, down: false, order: []};  // the column of the sort (0: as the server has them), and all ids in order

function listOfRuns() {
  const table = one("#list");
  if (!table) return;
  const body = one("tbody", table), compare = one("button[form=runs]"), heads = all("th", table);
  heads.forEach((head, place) => one("button", head)?.addEventListener("click", () => {
    Object.assign(list, {by: place, down: head.getAttribute("aria-sort") === "ascending"});
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", list.down ? "descending" : "ascending");
    arrange(body);
  }));
  one("#filter").addEventListener("input", () => sift(body));
  const marks = () => { compare.disabled = all("input:checked", body).length < 2; };
  body.addEventListener("change", marks);
  list.order = [...body.rows].map(row => row.dataset.run);
  list.marks = marks;
  marks();
  covers(body);
  setTimeout(layOutRows, 300, [...body.rows]);
}

// Rows below the screen wait until the page is painted; then they are laid out while it rests, so that scrolling need not,
// and after half a second where it does not rest.
function layOutRows(rows) {
  for (const row of rows.splice(0, 10)) row.style.contentVisibility = "visible";
  if (!rows.length) return;
  if (globalThis.requestIdleCallback) requestIdleCallback(() => layOutRows(rows), {timeout: 500}); else setTimeout(() => layOutRows(rows));
}

const collator = new Intl.Collator("en", {numeric: true});  // run-2 is before run-10

// A number only where the server gives one: a name may look like one.
function sortKey(row) {
  const {dataset: {value}, textContent} = row.cells[list.by];
  return value ? isNaN(value) ? value : Number(value) : value ?? textContent;
}

// Rows move only where they are not in their place: one that moves loses the focus.
function arrange(body) {
  const place = new Map(list.order.map((id, index) => [id, index])), focused = document.activeElement;
  const order = (a, b) => a === "" || b === "" ? (a === "") - (b === "") :
    (typeof a === "number" ? a - b : collator.compare(a, b)) * (list.down ? -1 : 1);
  const rows = [...body.rows].map(row => [list.by ? sortKey(row) : place.get(row.dataset.run), row]);
  rows.sort((a, b) => order(a[0], b[0]));
  rows.forEach(([, row], index) => { if (body.rows[index] !== row) body.insertBefore(row, body.rows[index] ?? null); });
  if (focused !== document.activeElement && body.contains(focused)) focused.focus({preventScroll: true});
}

function sift(body) {
  const words = one("#filter").value.toLowerCase().split(/\s+/);
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
  }
  const found = words.join("") ? `${all("tr:not([hidden])", body).length} of ${body.rows.length} shown` : "";
  if (one("#found").textContent !== found) one("#found").textContent = found;
}

// They are fetched while the list rests: one that arrives while it scrolls makes a frame late.
function covers(body) {
  const wanted = new Set();
  let rest;
  const fetchAll = () => {
    for (const cover of wanted) cover.src = `/runs/${cover.closest("tr").dataset.run}/cover`;
    wanted.clear();
  };
  const later = () => { clearTimeout(rest); rest = setTimeout(fetchAll, 150); };
  const watch = new IntersectionObserver(entries => {
    for (const {target, isIntersecting} of entries) {
      if (isIntersecting) wanted.add(target); else wanted.delete(target);
      if (target.src) watch.unobserve(target);
    }
    later();
  }, {rootMargin: "400px"});
  covers.observe = row => { for (const cover of all("img", row)) watch.observe(cover); };
  covers.observe(body);
  addEventListener("scroll", later, {passive: true});
}

// What is not laid out is not in what screen readers get.
function arrive(row) {
  covers.observe(row);
  layOutRows([row]);
}

// Of a row that has changed only the cells that have are replaced, so that its mark, its picture and the focus stay.
function changeRow(row, next) {
  if (row.className !== next.className) {
    const focused = row.contains(document.activeElement);
    row.replaceWith(next);
    if (focused) one("a", next).focus({preventScroll: true});
    arrive(next);
    return;
  }
  row.dataset.stamp = next.dataset.stamp;
  [...next.cells].forEach((cell, place) => {
    if (place > 1 && !cell.isEqualNode(row.cells[place])) row.cells[place].replaceWith(cell);
  });
  const cover = one("img", row);
  if (cover?.src) cover.src = `/runs/${row.dataset.run}/cover?at=${next.dataset.stamp}`;
}

function showList({lede, rows}) {
  const body = one("#list tbody");
  if (!body !== !rows.length) return location.reload();  // the first run has come, or the last one has gone
  if (one(".lede").textContent !== lede) one(".lede").textContent = lede;
  if (!body) return;
  const shown = new Map([...body.rows].map(row => [row.dataset.run, row]));
  list.order = rows.map(row => row.run);
  for (const {run: id, stamp, markup} of rows) {
    const row = shown.get(id);
    shown.delete(id);
    if (row?.dataset.stamp === stamp) continue;
    const [next] = elements(markup);
    if (row) changeRow(row, next); else { body.append(next); arrive(next); }
  }
  for (const row of shown.values()) row.remove();
  arrange(body);
  sift(body);
  list.marks();
}

// Asks whether the list has changed, while it is to be seen; an unchanged one is answered by 304 without a body.
function followList() {
  let version = `"${page.version}"`, due;
  const look = async () => {
    try {
      if (!document.hidden) {
        const answer = await fetch("/parts", {headers: {"If-None-Match": version}});
        if (answer.ok) { showList(await answer.json()); version = answer.headers.get("etag"); }
        stale({200: "", 304: "", 401: ANEW, 421: ANEW}[answer.status] ?? `The server answers with status ${answer.status}.`);
      }
    } catch { stale(SILENT); }
    clearTimeout(due);
    due = setTimeout(look, 3000);
  };
  document.addEventListener("visibilitychange", look);
  due = setTimeout(look, 3000);
}

// -- A run ------------------------------------------------------------------------------------------------------------

function sliders(root) {
  for (const figure of all("[data-frames]", root)) {
    const ruler = one("input", figure), frames = JSON.parse(figure.dataset.frames);
    ruler?.addEventListener("input", () => {
      const frame = frames[ruler.value];
      one("img", figure).src = frame.src;
      one("figcaption", figure).textContent = frame.when;
    });
  }
}

// Also what is as it was before, and may say that something was asked for.
function refreshAnyway() {
  refresh.shown = {};
  refresh.now?.();
}

async function refresh() {
  const parts = await ask("GET", `/runs/${run}/parts`);
  for (const [name, markup] of Object.entries(parts)) {
    const part = one(`[data-part=${name}]`);
    if (!part || refresh.shown[name] === markup) continue;
    refresh.shown[name] = markup;
    replacePart(part, elements(markup));
  }
  announce();
}

// A change of the state of a run, for screen readers; but not every minute of a training.
function announce() {
  const status = one("[data-state]"), state = status?.dataset.state;
  if (state === announce.state) return;
  if (announce.state) one("#news").textContent = all(".lede, .stopped > *", status).map(part => part.textContent).join(" ");
  announce.state = state;
}

// What people have done in a part stays: opened details, moved sliders, forms with what is in them, the focus.
function replacePart(part, content) {
  const focused = part.contains(document.activeElement) && document.activeElement;
  const forms = new Map(all("form", part).map(form => [replacePart.served.get(form), form]));
  const places = all("input[type=range]", part).map(ruler => ruler.value === ruler.max ? null : ruler.value);
  const open = all("details", part).map(each => each.open);
  part.replaceChildren(...content);
  for (const form of all("form", part)) {
    replacePart.served.set(form, form.outerHTML);
    const before = forms.get(form.outerHTML);
    if (before) form.replaceWith(before);
  }
  styled(part);
  sliders(part);
  focusable(part);
  all("details", part).forEach((each, place) => { each.open = open[place] ?? false; });
  all("input[type=range]", part).forEach((ruler, place) => {
    if (places[place] != null) { ruler.value = places[place]; ruler.dispatchEvent(new Event("input")); }
  });
  if (focused) focusAgain(part, focused);
  Promise.all([explain(part), explainFields(part)]).then(() => { if (focused && !document.activeElement.matches("main *")) focusAgain(part, focused); });
}
refresh.shown = {};
replacePart.served = new WeakMap(all("[data-part] form").map(form => [form, form.outerHTML]));  // forms, by their markup before anything was done to them

// On what is now in the place of an element that had the focus; where there is nothing, on the first thing to do.
function focusAgain(part, before) {
  const names = ["data-post", "data-term", "data-field", "data-copy", "href", "aria-label"];
  const key = element => names.map(name => element.getAttribute(name)).find(value => value !== null) ?? element.textContent;
  if (before.isConnected) return before.focus({preventScroll: true});
  const next = all("button, a, summary, input, select, .plot", part).find(element => key(element) === key(before));
  (next ?? (before.matches(".term") ? null : one(".actions :is(a, button)", part)))?.focus({preventScroll: true});
  if (next?.matches(".plot") && before.dataset.at) readValues(next, one("svg", next), Number(before.dataset.at), one("svg", next).getBoundingClientRect().top);
}

// What is shown is no longer what is there. Said once, not at every attempt: screen readers read it out.
function stale(reason) {
  if (reason === stale.reason) return;
  stale.reason = reason;
  one("#stale")?.remove();
  if (reason) one("main").prepend(made("p", {id: "stale", class: "stopped", role: "alert"}, `This page is no longer kept up to date. ${reason}`));
}

// A hidden page does not listen: browsers keep six connections to a server, and a seventh page would never be loaded.
function follow() {
  let due = null, last = 0, source = null, place = page.size;
  const soon = () => {
    due ??= setTimeout(() => { due = null; last = Date.now(); refresh.now(); }, Math.max(100, 2000 - (Date.now() - last)));
  };
  refresh.now = () => refresh().then(() => stale(""), error => stale(error.message));
  const listen = () => {
    let first = true;
    source = new EventSource(`/runs/${run}/events?since=${place}`);
    source.onerror = event => {
      if (event.target.readyState !== EventSource.CLOSED) return stale(SILENT);
      refresh.now();  // which says why
      setTimeout(() => { if (event.target === source && !document.hidden) listen(); }, 15000);
    };
    source.onopen = () => stale("");
    source.addEventListener("log", event => { place = event.lastEventId; soon(); });
    source.addEventListener("state", () => { if (!first) soon(); first = false; });
  };
  document.addEventListener("visibilitychange", () => {
    source?.close();
    if (!document.hidden) { listen(); refresh.now(); }
  });
  if (!document.hidden) listen();
}

// -- Pictures ---------------------------------------------------------------------------------------------------------

async function askForPictures(form, body, headers) {
  const news = await work(`/api/runs/${run}/samples`, body, headers), figures = news?.gallery?.figures || [];
  show(figures);
  if (figures.length) one("#sampling output").append(` ${figures.length} picture${figures.length === 1 ? " is" : "s are"} below.`);
  if (one("#nearest")?.getAttribute("aria-pressed") === "true") await findNearest();
}

// Asks for a job and follows it to its end; what goes wrong is written into the form.
async function work(address, body, headers) {
  const state = one("#sampling output"), bar = one("#sampling progress"), cancel = one("#cancel");
  state.className = "";
  state.textContent = "In the queue …";
  let last = null;
  try {
    const job = await ask("POST", address, body, headers);
    if (job.id) last = await followed(job, state, bar, cancel);
    state.textContent = last?.reason ? sentence(last.reason) : {cancelled: "Cancelled."}[last?.state] || "";
    state.classList.toggle("wrong", Boolean(last?.reason));
  } catch (error) {
    state.textContent = error.message;
    state.className = "wrong";
  }
  cancel.hidden = bar.hidden = true;
  return last;
}

function followed(job, state, bar, cancel) {
  cancel.hidden = bar.hidden = false;
  bar.removeAttribute("value");
  cancel.onclick = () => ask("DELETE", `/api/jobs/${job.id}`).catch(() => {});
  const [opening, doing] = job.kind === "nearest" ? ["Reading the training pictures …", "Searching …"] : ["Opening the model …", "Sampling …"];
  return new Promise((done, fail) => {
    const source = new EventSource(`/api/jobs/${job.id}/events`);
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) fail(new Error(ANEW));
      else state.textContent = `${SILENT} Trying again …`;
    };
    source.addEventListener("job", event => {
      const news = JSON.parse(event.data);
      if (news.state === "queued") state.textContent = news.before ? `${news.before} before it in the queue …` : "Next in the queue …";
      if (news.state === "running") { state.textContent = news.total ? doing : opening; if (news.total) bar.value = news.done / news.total; }
      if (["queued", "running"].includes(news.state)) return;
      source.close();
      done(news);
    });
  });
}

function show(figures) {
  const fresh = figures.flatMap(elements);
  for (const figure of fresh) { figure.classList.add("fresh"); }
  one("#gallery").prepend(...fresh);
}

// The nearest training pictures of all that are shown, some dozens at a time.
async function findNearest() {
  for (;;) {
    const news = await work(`/api/runs/${run}/nearest`);
    for (const figure of (news?.gallery?.figures || []).flatMap(elements)) one(`[data-picture="${figure.dataset.picture}"]`)?.replaceWith(figure);
    if (news?.state !== "finished") return;
  }
}

function kinds(form) {
  const kind = field(form, "kind"), shown = {seed_after: ["interpolate"], count: ["sample", "interpolate"]};
  const fit = () => { for (const [name, on] of Object.entries(shown)) field(form, name).closest(".field").hidden = !on.includes(kind.value); };
  kind.addEventListener("change", fit);
  fit();
}

function gallery() {
  const form = one("#sampling"), nearest = one("#nearest");
  nearest?.addEventListener("click", () => {
    const on = nearest.getAttribute("aria-pressed") !== "true";
    nearest.setAttribute("aria-pressed", on);
    one("#gallery").classList.toggle("nearest", on);
    if (on) findNearest();
  });
  kinds(form);
  form.addEventListener("submit", event => {
    event.preventDefault();
    askForPictures(form, JSON.stringify(fieldsOf(form)), {"Content-Type": "application/json"});
  });
  one("#gallery").addEventListener("click", event => {
    const figure = event.target.closest("figure"), button = event.target.closest("button");
    if (!figure || !button) return;
    const address = `/api/runs/${run}/pictures/${figure.dataset.picture}`, about = JSON.parse(figure.dataset.about);
    once(button, figure, () => change(figure, button, address, about));
  });
  const change = async (figure, button, address, about) => {
    if (button.dataset.star) {
      const star = button.getAttribute("aria-pressed") !== "true";
      await send(address, {star});
      button.setAttribute("aria-pressed", star);
    }
    if (button.dataset.remove && await confirmed(figure)) {
      await ask("DELETE", address).catch(error => { if (error.status !== 404) throw error; });  // another page has removed it
      removed(figure);
    }
    if (button.dataset.vary) await edit(figure.dataset.picture, one("img", figure));
    if (button.dataset.enlarge) {
      const asked = {kind: "enlarge", of: figure.dataset.picture};
      for (const name of ["seed", "label", "prompt"]) if (about[name] !== undefined) asked[name] = about[name];
      form.scrollIntoView({behavior: "smooth", block: "nearest"});
      askForPictures(form, JSON.stringify(asked), {"Content-Type": "application/json"});
    }
    if (button.dataset.again) {
      for (const name of ["label", "prompt", "negative", "seed", "steps", "guidance"]) if (field(form, name)) field(form, name).value = about[name] ?? "";
      field(form, "size").value = about.width ? `${about.width}x${about.height}` : "";
      field(form, "count").value = about.index + 1;
      field(form, "kind").value = about.kind;
      field(form, "kind").dispatchEvent(new Event("change"));
      form.scrollIntoView({behavior: "smooth"});
      field(form, "seed").focus();
    }
  };
  one("#gallery").addEventListener("input", event => {
    const picture = one(".steps", event.target.closest("figure"));
    if (picture) picture.style.objectPosition = `50% ${event.target.value}%`;
  });
  editing();
}

// Asks whether a picture is to be removed; Escape keeps it.
function confirmed(figure) {
  const dialog = one("#removal");
  one("p", dialog).textContent = one("figcaption span", figure).textContent;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise(done => dialog.addEventListener("close", () => done(dialog.returnValue === "remove"), {once: true}));
}

// The focus goes on to the next picture, and screen readers get what has happened.
function removed(figure) {
  const next = figure.nextElementSibling ?? figure.previousElementSibling;
  one("#news").textContent = `Removed: ${one("figcaption span", figure).textContent}`;
  figure.remove();
  (next ? one("[data-remove]", next) : one("#sampling [type=submit]")).focus();
}

// The brush paints on a canvas above the picture; what it has painted is sent as a mask, white on black.
const easel = {mask: null, picture: null, of: null, file: null, at: [0, 0]}, PAINT = "#d6336c";
// Of a picture of one's own; the server takes 32 MB together with the mask and the fields.
const MOST_PIXELS = 2 ** 24, MOST_BYTES = 31 * 2 ** 20;

// Opens a file as an image; what the server would refuse is refused before anybody paints on it.
async function requireTaken(file, image) {
  if (file.size > MOST_BYTES) throw new Error(`The file has ${Math.ceil(file.size / 2 ** 20)} MB, but at most ${MOST_BYTES / 2 ** 20} MB are taken; choose a smaller one.`);
  image.src = URL.createObjectURL(file);
  await image.decode().catch(() => { throw new Error("The browser cannot show this file; choose a PNG, JPEG or WebP."); });
  const {naturalWidth: width, naturalHeight: height} = image;
  if (width * height > MOST_PIXELS) throw new Error(`The picture has ${width}x${height} pixels, but at most ${MOST_PIXELS.toLocaleString("en")} are taken; make it smaller first.`);
}

async function edit(id, image, file = null) {
  await image.decode();
  const canvas = one("#brush");
  one("#enlarge").hidden = !file;
  Object.assign(easel, {of: id, file, picture: image, mask: document.createElement("canvas")});
  for (const each of [canvas, easel.mask]) { each.width = image.naturalWidth; each.height = image.naturalHeight; }
  Object.assign(easel, {painted: false, from: null, at: [canvas.width / 2, canvas.height / 2]});
  paint();
  one("#editor").showModal();
}

function paint() {
  const canvas = one("#brush"), pen = canvas.getContext("2d");
  pen.drawImage(easel.picture, 0, 0);
  pen.globalAlpha = .7;
  pen.drawImage(easel.mask, 0, 0);
  pen.globalAlpha = 1;
  if (!canvas.matches(":focus-visible")) return;
  pen.strokeStyle = PAINT;
  pen.beginPath();
  pen.arc(...easel.at, brushWidth() / 2, 0, 7);
  pen.stroke();
}
const brushWidth = () => Number(field(one("#editing"), "width").value) / 100 * one("#brush").width;

function stroke(event) {
  const canvas = one("#brush"), box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
  strokeTo([(event.clientX - box.left) * scale, (event.clientY - box.top) * scale]);
}

function strokeTo(at) {
  const pen = easel.mask.getContext("2d");
  pen.strokeStyle = PAINT;
  pen.lineWidth = brushWidth();
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  pen.moveTo(...(easel.from || at));
  pen.lineTo(at[0] + .01, at[1]);
  pen.stroke();
  Object.assign(easel, {from: at, at, painted: true});
  paint();
}

// The arrow keys move the brush by half its width; the space bar paints, and while it is held a line.
function brushKeys(canvas) {
  const ways = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  const inside = (value, end) => Math.min(Math.max(value, 0), end);
  let down = false;
  canvas.addEventListener("keydown", event => {
    const way = ways[event.key], by = brushWidth() / 2;
    if (!way && event.key !== " ") return;
    event.preventDefault();
    if (way) easel.at = [inside(easel.at[0] + way[0] * by, canvas.width), inside(easel.at[1] + way[1] * by, canvas.height)];
    else if (!down) { down = true; easel.from = null; }
    if (down) strokeTo(easel.at); else paint();
  });
  canvas.addEventListener("keyup", event => { if (event.key === " ") down = false; });
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, () => { down = false; if (easel.mask) paint(); });
}

// What was painted, as a JPEG: white on black, without transparency.
async function maskOf(width, height) {
  const flat = Object.assign(document.createElement("canvas"), {width, height}), pen = flat.getContext("2d");
  const pixels = easel.mask.getContext("2d").getImageData(0, 0, width, height), data = pixels.data;
  for (let place = 0; place < data.length; place += 4) {
    data.fill(data[place + 3] > 127 ? 255 : 0, place, place + 3);
    data[place + 3] = 255;
  }
  pen.putImageData(pixels, 0, 0);
  const opaque = await new Promise(done => flat.toBlob(done, "image/jpeg", 1));
  if (!opaque) throw new Error("it is too large for this browser");
  return opaque;
}

function editing() {
  const dialog = one("#editor"), form = one("#editing"), canvas = one("#brush"), own = one("#own");
  canvas.addEventListener("pointerdown", event => { canvas.setPointerCapture(event.pointerId); easel.from = null; stroke(event); });
  canvas.addEventListener("pointermove", event => { if (event.buttons) stroke(event); });
  brushKeys(canvas);
  one("#unpaint").addEventListener("click", () => { easel.mask.width = easel.mask.width; easel.painted = false; paint(); });
  one("#close").addEventListener("click", () => dialog.close());
  own.addEventListener("change", async () => {
    const [file] = own.files, image = new Image(), state = one("#sampling output");
    own.value = "";
    if (!file) return;
    accept(one("#sampling"));
    try {
      await requireTaken(file, image);
      await edit(null, image, file);
    } catch (error) {
      state.textContent = error.message;
      state.className = "wrong";
    }
    URL.revokeObjectURL(image.src);
  });
  // The picture, by its id or as a file, and what is asked for, with those fields of the form above that are named.
  const bodyOf = (about, ...names) => {
    const body = new FormData(), above = fieldsOf(one("#sampling"));
    for (const name of names) if (above[name] !== undefined) about[name] = above[name];
    if (easel.file) body.append("image", easel.file, easel.file.name); else about.of = easel.of;
    for (const [name, value] of Object.entries(about)) body.append(name, value);
    return body;
  };
  const make = body => {
    dialog.close();
    one("#sampling").scrollIntoView({behavior: "smooth"});
    askForPictures(one("#sampling"), body);
  };
  one("#enlarge").addEventListener("click", () => make(bodyOf({kind: "enlarge"}, "label", "prompt")));
  form.addEventListener("submit", async event => {
    event.preventDefault();
    const {width, ...given} = fieldsOf(form);
    const body = bodyOf({...given, kind: "edit"}, "label", "prompt", "negative", "steps", "guidance");
    try {
      if (easel.painted) body.append("mask", await maskOf(canvas.width, canvas.height), "mask.jpg");
    } catch (error) {  // no memory for it
      dialog.close();
      return refuse(one("#sampling"), new Error(`The mask cannot be made (${error.message}); choose a smaller picture.`));
    }
    make(body);
  });
}

// -- A new run --------------------------------------------------------------------------------------------------------

const uploaded = {id: "", none: false, copying: null};

// What the server takes for the name of a run.
const runName = text => [...text.normalize("NFC").replace(/[^\p{L}\p{M}\p{N}_ .()\u200c\u200d-]/gu, "-").replace(/^[^\p{L}\p{N}_]+/u, "")]
  .slice(0, 80).join("").replace(/[ .]+$/, "");

async function* filesIn(entry, path = "") {
  if (entry.isFile) { yield [path + entry.name, await new Promise((done, fail) => entry.file(done, fail))]; return; }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!some.length) return;
    for (const below of some) yield* filesIn(below, `${path}${entry.name}/`);
  }
}

async function upload(files) {
  const drop = one("#drop"), bar = one("progress", drop), state = one("[role=status]", drop);
  const id = [...crypto.getRandomValues(new Uint8Array(8))].map(byte => byte.toString(16).padStart(2, "0")).join("");
  const tops = new Set(files.map(([path]) => path.split("/")[0]));
  const below = tops.size === 1 && files.every(([path]) => path.includes("/")) ? 1 : 0;
  const refused = [], texts = /\.(txt|caption|jsonl?|ndjson|csv|tsv)$/i, name = field(one("#new"), "name");
  if (!name.value && below) name.value = runName([...tops][0]);
  let pictures = 0;
  Object.assign(uploaded, {id: "", none: true});
  bar.hidden = false;
  let done = 0;
  for (const [path, file] of files) {
    const place = path.split("/").slice(below).join("/");
    if (!place.split("/").some(part => part.startsWith("."))) {
      try {
        await ask("POST", `/api/uploads/${id}?path=${encodeURIComponent(place)}`, file, {"Content-Type": "application/octet-stream"});
        if (!texts.test(place)) pictures += 1;
      } catch (error) {
        refused.push(error.message);
        if (error.status === 507) break;  // the disk is full
      }
    }
    bar.value = ++done / files.length;
    state.textContent = `${done.toLocaleString("en")} of ${files.length.toLocaleString("en")}`;
  }
  if (pictures) Object.assign(uploaded, {id, none: false});
  bar.hidden = true;
  const left = refused.length ? ` ${refused.length} left out: ${refused[0]}` : "";
  state.textContent = `${pictures.toLocaleString("en")} picture${pictures === 1 ? " is" : "s are"} here.${left}`;
}

// Folders are copied one after the other; the newest counts, and a training waits for it.
function copy(action) {
  const failed = error => { one("#drop [role=status]").textContent = `The folder cannot be read: ${error.message}`; };
  const copying = uploaded.copying = Promise.resolve(uploaded.copying).then(action).catch(failed)
    .finally(() => { if (uploaded.copying === copying) uploaded.copying = null; });
}

function newRun() {
  const form = one("#new"), drop = one("#drop"), state = one("output", form);
  drop.addEventListener("dragover", event => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", async event => {
    event.preventDefault();
    drop.classList.remove("over");
    const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry()).filter(Boolean);
    copy(async () => {
      const files = [];
      for (const entry of entries) for await (const file of filesIn(entry)) files.push(file);
      await upload(files);
    });
  });
  one("#files").addEventListener("change", event => {
    const files = [...event.target.files].map(file => [file.webkitRelativePath || file.name, file]);
    if (files.length) copy(() => upload(files));
  });
  field(form, "path").addEventListener("change", event => {
    const name = field(form, "name");
    if (!name.value) name.value = runName(event.target.value.trim().split(/[\\/]/).filter(Boolean).pop() ?? "");
  });
  form.addEventListener("submit", event => {
    event.preventDefault();
    once(one("[type=submit]", form), form, async () => {
      if (uploaded.copying) state.textContent = "It starts when the pictures are copied …";
      await uploaded.copying;
      const given = fieldsOf(form);
      if (uploaded.none && !given.path) throw new Error("None of the files that were dropped is a picture; drop others, or give a path.");
      const {page: place} = await send("/api/runs", {...given, size: Number(given.size), upload: given.path ? "" : uploaded.id});
      location.href = place;
    });
  });
}

// The pictures are read and the plan is made: the page is asked for again until there is a run, or it has ended.
async function starting() {
  let over = page.over;
  try {
    const answer = await fetch(location.href), next = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (next.body.dataset.page !== "start") return location.reload();
    const part = one("[data-part=start]"), theirs = one("[data-part=start]", next);
    over = next.body.dataset.over;
    if (refresh.shown.start !== theirs.innerHTML) replacePart(part, [...theirs.childNodes].map(node => document.importNode(node, true)));
    refresh.shown.start = theirs.innerHTML;
    stale("");
  } catch { stale(SILENT); }
  clearTimeout(starting.due);
  if (!over) starting.due = setTimeout(starting, 2000);
}

// -- Which page this is -----------------------------------------------------------------------------------------------

styled(document);
focusable(document);
if (page.page === "index") { listOfRuns(); followList(); }
if (page.page === "run") { sliders(document); announce(); follow(); }
if (page.page === "gallery") gallery();
if (page.page === "new") newRun();
if (page.page === "start" && !page.over) { refresh.now = starting; starting.due = setTimeout(starting, 2000); }
if (page.page && page.page !== "words") { explain(one("main")); explainFields(); }
document.body.dataset.ready = "1";
