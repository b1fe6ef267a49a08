// Conversations and their pictures, in IndexedDB; in memory for this visit where the browser has none.
//
// conversation: {id, title, titled, created, updated, cover: Blob|null, messages: [message]}
// message, role "user":      {id, role, text, pictures: [picture id]}
// message, role "assistant": {id, role, text, status: "done"|"stopped"|"error"|"streaming", finish, info, error}
// picture: {id, conversation, name, type, width, height, blob} or, by link, {id, conversation, name, link}

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)),
  (byte) => byte.toString(16).padStart(2, "0")).join("");

let db = null;
const memory = { conversations: new Map(), pictures: new Map() };

// Whether what is stored will be there next time.
export async function open() {
  try {
    db = await new Promise((resolve, reject) => {
      const opening = indexedDB.open("image-chat", 1);
      opening.onupgradeneeded = () => {
        opening.result.createObjectStore("conversations", { keyPath: "id" });
        opening.result.createObjectStore("pictures", { keyPath: "id" }).createIndex("conversation", "conversation");
      };
      opening.onsuccess = () => resolve(opening.result);
      opening.onerror = () => reject(opening.error);
    });
    return true;
  } catch {
    return false;
  }
}

const answered = (req) => new Promise((resolve, reject) => {
  req.onsuccess = () => resolve(req.result);
  req.onerror = () => reject(req.error);
});

// One transaction over both stores; resolves when it is on disk.
function write(change) {
  if (!db) {
    change({
      put: (store, record) => memory[store].set(record.id, structuredClone(record)),
      remove: (store, id) => memory[store].delete(id),
    });
    return Promise.resolve();
  }
  return new Promise((resolve, reject) => {
    const transaction = db.transaction(["conversations", "pictures"], "readwrite");
    transaction.oncomplete = () => resolve();
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
    change({
      put: (store, record) => transaction.objectStore(store).put(record),
      remove: (store, id) => transaction.objectStore(store).delete(id),
    });
  });
}

const read = (store) => db.transaction(store).objectStore(store);

// Newest first.
export async function list() {
  const all = db ? await answered(read("conversations").getAll()) : [...memory.conversations.values()];
  return all.sort((a, b) => b.updated - a.updated);
}

export async function get(id) {
  return db ? answered(read("conversations").get(id)) : structuredClone(memory.conversations.get(id));
}

export async function pictures(id) {
  if (db) return answered(read("pictures").index("conversation").getAll(id));
  return [...memory.pictures.values()].filter((picture) => picture.conversation === id);
}

// Saves a conversation with new pictures, and lets go of pictures that no message shows any more.
export async function save(conversation, added = [], dropped = []) {
  await write(({ put, remove }) => {
    put("conversations", conversation);
    for (const picture of added) put("pictures", picture);
    for (const id of dropped) remove("pictures", id);
  });
}

// What was removed is returned, so that it can be saved again.
export async function remove(id) {
  const conversation = await get(id);
  const shown = await pictures(id);
  await write((stores) => {
    stores.remove("conversations", id);
    for (const picture of shown) stores.remove("pictures", picture.id);
  });
  return { conversation, pictures: shown };
}
