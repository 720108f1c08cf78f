// What survives a reload of the page: this tab's conversations and settings.

const NAME = "decoding-server.session";
const WAIT_MS = 200;

export function loadSession() {
  try {
    return JSON.parse(sessionStorage.getItem(NAME));
  } catch {
    return null;
  }
}

/** A function that stores what `state()` returns, soon, and at once when the page goes. */
export function sessionSaver(state) {
  let timer = null;
  const store = () => {
    clearTimeout(timer);
    timer = null;
    try {
      sessionStorage.setItem(NAME, JSON.stringify(state()));
    } catch {
      // Full, or switched off: then a reload begins afresh.
    }
  };
  addEventListener("pagehide", store);
  return () => {
    timer ??= setTimeout(store, WAIT_MS);
  };
}
