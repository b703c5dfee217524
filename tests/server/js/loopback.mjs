// Loaded before everything else: a test that would call anybody but this machine fails here instead.
import net from "node:net";

const LOOPBACK = new Set(["127.0.0.1", "::1", "localhost"]);
const realFetch = globalThis.fetch;

globalThis.fetch = (resource, options) => {
  const url = new URL(typeof resource === "string" || resource instanceof URL ? resource : resource.url);
  if (!LOOPBACK.has(url.hostname)) {
    throw new Error(`A call to ${url.origin} was about to leave this machine.`);
  }
  return realFetch(resource, options);
};
// The same for whatever does not go through fetch.
const realConnect = net.Socket.prototype.connect;
net.Socket.prototype.connect = function (...args) {
  const options = Array.isArray(args[0]) ? args[0][0] : args[0];
  if (options?.host && !LOOPBACK.has(options.host)) {
    throw new Error(`A connection to ${options.host} was about to leave this machine.`);
  }
  return realConnect.apply(this, args);
};
