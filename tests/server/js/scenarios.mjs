// One scenario of the real client per run: node --import ./loopback.mjs scenarios.mjs <name> <base> <JSON>.
// Prints what a user of the client would see, as one line of JSON.
import { fal, ApiError, ValidationError } from "@fal-ai/client";

const APP = "fal-ai/video-as-prompt";
const [name, base, text] = process.argv.slice(2);
const given = JSON.parse(text);

fal.config({
  credentials: given.key ?? "any",
  proxyUrl: { url: `${base}/api/fal/proxy`, when: "always" },
});

const blob = (encoded, type) => new Blob([Buffer.from(encoded, "base64")], { type });
const files = () => ({
  video_url: blob(given.video, "video/mp4"),
  image_url: new File([Buffer.from(given.image, "base64")], "my picture.png", { type: "image/png" }),
});
const seen = (error) => ({
  isApiError: error instanceof ApiError,
  isValidationError: error instanceof ValidationError,
  status: error.status,
  requestId: error.requestId,
  body: error.body,
  message: error.message,
});

const scenarios = {
  async subscribe() {
    const updates = [];
    const result = await fal.subscribe(APP, {
      input: { ...given.input, ...files() },
      logs: true,
      mode: given.mode,
      pollInterval: 50,
      onQueueUpdate: (update) => updates.push({ status: update.status, logs: (update.logs ?? []).map((l) => l.message) }),
    });
    return { result, updates };
  },

  async queue() {
    const { request_id: requestId } = await fal.queue.submit(APP, { input: given.input, priority: "low" });
    const status = await fal.queue.status(APP, { requestId, logs: true });
    await fal.queue.cancel(APP, { requestId });
    let completed;
    do {
      completed = await fal.queue.status(APP, { requestId });
    } while (completed.status !== "COMPLETED");
    try {
      await fal.queue.result(APP, { requestId });
    } catch (error) {
      return { requestId, status, completed, error: seen(error) };
    }
  },

  async stream() {
    const { request_id: requestId } = await fal.queue.submit(APP, { input: given.input });
    const stream = await fal.queue.streamStatus(APP, { requestId, logs: true });
    const events = [];
    for await (const event of stream) events.push(event);
    return { events, done: await stream.done() };
  },

  async run() {
    return await fal.run(APP, { input: given.input });
  },

  async invalid() {
    try {
      await fal.subscribe(APP, { input: given.input, pollInterval: 50 });
    } catch (error) {
      return { ...seen(error), faults: error.getFieldErrors?.(given.field) };
    }
  },

  async upload() {
    const bytes = new Uint8Array(given.size).fill(7);
    bytes.set([1, 2, 3], given.size - 3);
    return { url: await fal.storage.upload(new File([bytes], "a clip.mp4", { type: "video/mp4" })) };
  },

  async late() {
    try {
      await fal.subscribe(APP, { input: given.input, pollInterval: 50, startTimeout: 1.5 });
    } catch (error) {
      return { ...seen(error), isUserTimeout: error.isUserTimeout };
    }
  },
};

console.log(JSON.stringify((await scenarios[name]()) ?? null));
