// Questions to the service and its errors in words. Leaves out what is shown of them.

const KEY = "llm-rerank-api-key"; // sessionStorage: gone with the tab

/** An answer that is no answer. status: of HTTP, 0 where the service was not reached. */
export class ServiceError extends Error {
  constructor(message, { status = 0, code = "", field = "", retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, field, retryAfter });
  }

  /** Whether the same question may be answered a moment later, or was and only the answer is lost. */
  get passing() {
    return [0, 502, 503, 504].includes(this.status); // 502, 504: of a proxy that may stand before the service
  }

  /** What went wrong and what to do, in one or two sentences. */
  words() {
    if (this.status === 0) return "The service does not answer. Is it running, and is the network up?";
    if (this.status === 401) return "The service wants an API key, or another one than was given.";
    const wait = this.retryAfter ? ` Try again in ${this.retryAfter} s.` : " Try again in a moment.";
    if (this.status === 503) return `The service is busy: ${ended(this.message)}${wait}`;
    if (this.status >= 500) return `The service failed: ${ended(this.message)}`;
    const field = this.field && !this.message.includes(this.field) ? ` (${this.field})` : "";
    return ended(`${this.message}${field}`);
  }
}

const ended = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

/**
 * Ask the service. path: relative, so that a proxy may put a prefix before it. body: an object sent as JSON, or a Blob
 * with a type of its own. Returns the JSON of the answer. Throws ServiceError, or AbortError where `signal` fired.
 */
export async function ask(method, path, body = undefined, { signal } = {}) {
  const headers = { accept: "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers["x-api-key"] = key;
  if (body !== undefined) headers["content-type"] = body instanceof Blob ? body.type : "application/json";
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      method,
      headers,
      signal,
      body: body === undefined || body instanceof Blob ? body : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(error.message);
  }
  const answer = await response.json().catch((error) => {
    if (error.name === "AbortError") throw error; // it was given up while it arrived
    return null;
  });
  if (response.ok && answer !== null) return answer;
  const {
    code = "",
    message = `it answered ${response.status} ${response.statusText}`,
    field = "",
  } = answer?.error ?? {};
  const retryAfter = response.headers.get("retry-after");
  throw new ServiceError(message, { status: response.status || 500, code, field, retryAfter });
}
