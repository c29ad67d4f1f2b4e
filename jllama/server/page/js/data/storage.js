// The browser's storage, or the page's own memory where the browser refuses it: all works then until the tab
// is closed.

class Memory {
  getItem(key) {
    return Object.hasOwn(this, key) ? this[key] : null;
  }

  setItem(key, text) {
    this[key] = text;
  }

  removeItem(key) {
    delete this[key];
  }
}

/** Only to look at the property raises an error where storage is blocked. */
function available(name) {
  try {
    const storage = window[name];
    storage.getItem("");
    return storage;
  } catch {
    return new Memory();
  }
}

export const lasting = available("localStorage");
export const ofThisTab = available("sessionStorage");
export const isBlocked = lasting instanceof Memory;
