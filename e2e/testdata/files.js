// Timers, files, promises and a heap in Node.js, which checks itself.
//
// Usage: node files.js ASK DIR
"use strict";
const crypto = require("crypto");
const fs = require("fs");
const os = require("os");
const path = require("path");

const [ask, directory] = process.argv.slice(2);
const problems = [];
const counts = { timers: 0, lines: 0, objects: 0, reads: 0 };
const problem = (text) => problems.push(text);
process.on("uncaughtException", (error) => problem(String(error.stack)));
process.on("unhandledRejection", (error) => problem(String(error)));

// Timers are never early, and the clock never goes back.
let last = process.hrtime.bigint();
(function tick() {
  const start = process.hrtime.bigint();
  if (start < last) problem(`the clock went back by ${last - start} ns`);
  last = start;
  setTimeout(() => {
    const passed = process.hrtime.bigint() - start;
    if (passed < 4_000_000n) problem(`a timer of 5 ms fired after ${passed} ns`);
    counts.timers++;
    tick();
  }, 5);
})();

// Numbered lines, written by the thread pool, read again now and then.
const line = (n) => Buffer.from(String(n).padEnd(31) + "\n");
const file = fs.promises.open(path.join(directory, "lines"), "w+");
(async function write() {
  const f = await file;
  for (;;) {
    await f.write(line(counts.lines), 0, 32, counts.lines * 32);
    counts.lines++;
    const at = Math.floor(Math.random() * counts.lines);
    const { buffer } = await f.read(Buffer.alloc(32), 0, 32, at * 32);
    if (!buffer.equals(line(at))) problem(`line ${at} is ${buffer}`);
    counts.reads++;
    await new Promise(setImmediate);
  }
})();

// A heap that the garbage collector moves about.
const objects = new Map();
setInterval(() => {
  for (let i = 0; i < 200; i++) {
    const data = crypto.randomBytes(1 + Math.floor(Math.random() * 300)).toString("hex");
    objects.set(Math.floor(Math.random() * 5000), { data, sum: crypto.createHash("sha1").update(data).digest("hex") });
    counts.objects++;
  }
}, 3);

async function verify() {
  for (const [key, { data, sum }] of objects) {
    if (crypto.createHash("sha1").update(data).digest("hex") !== sum) problem(`object ${key} has changed`);
  }
  const f = await file;
  const lines = counts.lines;
  const { buffer } = await f.read(Buffer.alloc(lines * 32), 0, lines * 32, 0);
  for (let i = 0; i < lines; i++) {
    if (!buffer.subarray(i * 32, i * 32 + 32).equals(line(i))) {
      problem(`line ${i} is wrong`);
      break;
    }
  }
  const before = { ...counts };
  const still = () => Object.keys(counts).filter((name) => counts[name] === before[name]);
  for (let i = 0; i < 1000 && still().length > 0; i++) await new Promise((resolve) => setTimeout(resolve, 10));
  for (const name of still()) problem(`${name} stands still`);
}

(function answer() {
  let token;
  try {
    token = fs.readFileSync(ask, "utf8");
    fs.unlinkSync(ask);
  } catch {
    setTimeout(answer, 10);
    return;
  }
  verify().then(() => {
    const verdict = { program: "files.js", token, pid: process.pid, host: os.hostname(), ok: problems.length === 0, problems, counts };
    fs.writeFileSync(ask + ".new", JSON.stringify(verdict));
    fs.renameSync(ask + ".new", ask + ".answer");
    answer();
  });
})();
console.log("ready files.js", process.pid);
