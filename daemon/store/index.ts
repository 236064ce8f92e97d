/** Content-addressed objects on disk: admitted, pinned, evicted, recovered; one owner a store. */
export {
  DurableFile,
  type DurableOptions,
  makeFolderDurably,
  makeFolderDurablySync,
  syncFile,
  syncFolder,
  syncFolderSync,
  writeDurably,
  writeDurablySync,
} from './durable-file.js'
export { flock } from './flock.js'
export { foreignOwner, refuseForeignFolder } from './foreign-folder.js'
export { findObject, type ObjectId, objectId, objectPath, objectsFolder } from './layout.js'
export {
  type ObjectHandle,
  type ObjectStore,
  openStore,
  type Pin,
  type StoredObject,
  type StoreOptions,
  type StoreStats,
} from './object-store.js'
export { acquireOwnership, type OwnerFacts, type Ownership, readOwner } from './owner.js'
export { isAlive } from './recover.js'
export type { Reservation } from './reservation.js'
export { parseStamp } from './stamp.js'
export { withLock } from './with-lock.js'
