// Sends each client numbered server-sent events until the client ends.
//
// Usage: events.js ADDRESS PORT
const [address, port] = process.argv.slice(2);
require("http").createServer((request, response) => {
  response.writeHead(200, {"Content-Type": "text/event-stream"});
  let number = 0;
  const timer = setInterval(() => response.write(`data: ${++number} ${request.url}\n\n`), 2);
  response.on("close", () => clearInterval(timer));
}).listen(Number(port), address);
