"use strict";
// The status page: asks Prometheus and Ray every five seconds, shows what they say and how old that is.
const EVERY = 5000, PATIENCE = 4000;
const SILENCE = 2; // hours
let site = null;
const known = {}; // the last answer of each source, and when it came
const broken = {}; // since when a source does not answer

const element = (name, text = "", kind = "") => {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
};
const fill = (selector, children) => document.querySelector(selector).replaceChildren(...children);
const percent = (value) => `${Math.round(100 * value)} %`;
const span = (seconds) => {
  const s = Math.max(0, Math.round(seconds));
  return s < 90 ? `${s} s` : s < 5400 ? `${Math.round(s / 60)} min` : s < 129600 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
};

async function fetched(address, more = {}) {
  const answer = await fetch(address, { ...more, headers: { Accept: "application/json", ...more.headers }, signal: AbortSignal.timeout(PATIENCE) });
  if (answer.status === 401) location.href = `/gate/login?next=${encodeURIComponent(location.pathname)}`;
  if (!answer.ok) throw new Error(`${answer.status}`);
  return answer.headers.get("Content-Type")?.includes("json") ? answer.json() : null;
}

// A source that does not answer leaves what it said last.
async function source(name, ask) {
  try {
    known[name] = { value: await ask(), at: Date.now() };
    delete broken[name];
  } catch {
    broken[name] ??= Date.now();
  }
}

// All in one question, each answer with the name of what was asked.
async function figures(queries) {
  const names = Object.keys(queries);
  const question = names.map((name) => `label_replace(${queries[name]}, "figure", "${name}", "", "")`).join(" or ");
  const rows = (await fetched(`/prometheus/api/v1/query?query=${encodeURIComponent(question)}`)).data.result;
  return Object.fromEntries(names.map((name) => [name, rows.filter((row) => row.metric.figure === name)]));
}

const number = (rows) => (rows.length ? Number(rows[0].value[1]) : null);
const by = (rows, label) => Object.fromEntries(rows.map((row) => [row.metric[label], Number(row.value[1])]));

function meter(value) {
  const cell = element("td");
  if (value === undefined || Number.isNaN(value)) return element("td", "–", "quiet");
  const bar = document.createElement("meter");
  Object.assign(bar, { min: 0, max: 1, low: 0.7, high: 0.9, optimum: 0, value });
  bar.setAttribute("aria-hidden", "true");
  cell.append(bar, percent(value));
  return cell;
}

function showHosts(found) {
  const kinds = {}, state = {};
  for (const row of [...found.up, ...found.state]) kinds[row.metric.host] = row.metric.kind;
  for (const row of found.state) state[row.metric.host] = row.metric.state;
  const up = by(found.up, "host"), battery = by(found.battery, "host"), tasks = by(found.tasks, "host");
  const columns = ["cpu", "memory", "disk", "store"].map((name) => by(found[name], "host"));
  fill("#hosts tbody", Object.keys(kinds).sort().map((host) => {
    const here = up[host] === 1, laptop = kinds[host] === "laptop";
    const drained = ["draining", "drained"].includes(state[host]);
    const word = laptop ? state[host] ?? (here ? "ready" : "unknown") : drained ? state[host] : here ? "ready" : "down";
    const kind = word === "ready" ? "good" : word === "down" || word === "lost" ? "critical" : "quiet";
    const row = element("tr"), name = element("td", host), said = element("td", word, kind);
    if (laptop) name.append(element("small", " laptop", "quiet"));
    if (laptop && battery[host] !== undefined) said.append(element("span", ` ${battery[host]} %`, "quiet"));
    row.append(name, said, ...columns.map((column) => meter(here ? column[host] : undefined)));
    row.append(element("td", tasks[host] === undefined ? "–" : `${tasks[host]}`));
    return row;
  }));
}

function lines(selector, rows) {
  fill(selector, rows.flatMap(([name, text, kind]) => [element("dt", name), element("dd", text, kind)]));
}

function showRay(found, jobs) {
  const alive = number(found.nodes_alive), wanted = number(found.nodes_wanted);
  const rows = [["Nodes of servers", alive === null ? "–" : `${alive} of ${wanted}`, alive === wanted ? "good" : "critical"]];
  if (jobs) {
    const count = (status) => jobs.filter((job) => job.status === status).length;
    rows.push(["Jobs running", `${count("RUNNING")}`], ["Jobs waiting", `${count("PENDING")}`]);
    rows.push(["Jobs failed", `${count("FAILED")}`, count("FAILED") ? "warning" : ""]);
  } else rows.push(["Jobs", "Ray's head does not answer", "critical"]);
  lines("#ray dl", rows);
}

function showCelery(found) {
  const up = number(found.workers_up), wanted = number(found.workers_wanted), dead = number(found.dead), beat = number(found.beat);
  lines("#celery dl", [
    ["Workers of servers", up === null ? "–" : `${up} of ${wanted}`, up === wanted ? "good" : "critical"],
    ["Schedule", beat === 1 ? "kept" : "nobody keeps it", beat === 1 ? "good" : "critical"],
    ["Dead letters", dead === null ? "–" : `${dead}`, dead ? "warning" : ""],
  ]);
  const oldest = by(found.oldest, "queue"), waiting = by(found.queue, "queue");
  fill("#celery tbody", Object.keys(waiting).sort().map((queue) => {
    const row = element("tr");
    row.append(element("td", queue), element("td", `${waiting[queue]}`), element("td", waiting[queue] ? span(oldest[queue]) : "–"));
    return row;
  }));
}

const firing = (alert) => alert.state === "firing";

function showAlerts(alerts) {
  fill("#firing", alerts.length ? alerts.map((alert) => {
    const item = element("li"), since = span((Date.now() - Date.parse(alert.activeAt)) / 1000);
    item.append(element("strong", alert.annotations.summary, alert.labels.severity), element("span", ` for ${since}`, "quiet"), element("div", alert.annotations.fix));
    if (site.silences) item.append(button(`Silence for ${SILENCE} h`, () => silence(alert.labels)));
    return item;
  }) : [element("li", "None", "quiet")]);
}

function button(text, act) {
  const made = element("button", text);
  made.type = "button";
  made.addEventListener("click", async () => {
    made.disabled = true;
    try {
      await act();
      await look();
    } catch {
      made.disabled = false;
      made.textContent = `${text}: Alertmanager does not answer; try again`;
    }
  });
  return made;
}

// No messages about this alert on this host; the page goes on to show it.
async function silence(labels) {
  const matchers = ["alertname", "host"].filter((name) => labels[name])
    .map((name) => ({ name, value: labels[name], isRegex: false, isEqual: true }));
  const from = Date.now(), body = { matchers, startsAt: new Date(from), endsAt: new Date(from + SILENCE * 3600e3), createdBy: "status page", comment: "seen" };
  await fetched("/alertmanager/api/v2/silences", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

function showSilences(silences) {
  fill("#silences", silences.filter(({ status }) => status.state === "active").map((one) => {
    const item = element("li"), whom = one.matchers.map(({ name, value }) => `${name} ${value}`).join(", ");
    item.append(element("span", `Silenced for ${span((Date.parse(one.endsAt) - Date.now()) / 1000)}: ${whom} (${one.createdBy}: ${one.comment})`, "quiet"));
    item.append(button("End", () => fetched(`/alertmanager/api/v2/silence/${one.id}`, { method: "DELETE" })));
    return item;
  }));
}

function show() {
  const { prometheus, alerts, ray, silences } = known;
  if (alerts) showAlerts(alerts.value.filter(firing));
  if (silences) showSilences(silences.value);
  if (prometheus) {
    showHosts(prometheus.value);
    showRay(prometheus.value, broken.ray ? null : ray?.value);
    showCelery(prometheus.value);
  }
  tell();
}

// In one line how it stands, and how old that is.
function tell() {
  const { prometheus, alerts } = known;
  const names = { gateway: "the gateway", prometheus: "Prometheus", ray: "Ray's head", alerts: "Prometheus", silences: "Alertmanager" };
  const silent = [...new Set(Object.keys(broken).map((name) => names[name]))];
  const wrong = alerts ? alerts.value.filter(firing) : [];
  document.querySelector("main").classList.toggle("old", Boolean(broken.prometheus));
  const verdict = document.querySelector("#verdict");
  const worst = wrong.some((alert) => alert.labels.severity === "critical") ? "critical" : "warning";
  [verdict.textContent, verdict.className] = silent.length
    ? [`No answer from ${silent.join(" and ")}`, "critical"]
    : wrong.length ? [`${wrong.length} ${wrong.length === 1 ? "alert" : "alerts"}`, worst] : ["All is well", "good"];
  const age = prometheus ? (Date.now() - prometheus.at) / 1000 : null;
  document.querySelector("#age").textContent = age === null ? "nothing seen yet" : age < 8 ? "as of now" : `what you see is ${span(age)} old`;
}

async function look() {
  if (!site) {
    await source("gateway", async () => {
      site = await fetched("site.json");
      document.querySelector("#cluster").textContent = site.cluster;
      fill("#pages", site.pages.map(({ name, path }) => Object.assign(element("a", name), { href: path })));
    });
  }
  if (site) {
    await Promise.all([
      source("prometheus", () => figures(site.queries)),
      source("alerts", async () => (await fetched("/prometheus/api/v1/alerts")).data.alerts),
      source("ray", () => fetched("/ray/api/jobs/")),
      site.silences && source("silences", () => fetched("/alertmanager/api/v2/silences")),
    ]);
  }
  show();
}

async function main() {
  for (;;) {
    await look();
    await new Promise((done) => setTimeout(done, EVERY));
  }
}
setInterval(tell, 1000);
main();
