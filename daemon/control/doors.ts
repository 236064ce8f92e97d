/**
 * The daemon's doors: one unix socket per right, so that whom the operating system lets in says what they may do.
 *
 * The owner of the cache has all rights at `control`. The cache's group may hold objects at `leases` and read at
 * `status`. A door is not asked who stands in front of it: its file's owner, group and mode decide that. `socketPath`
 * elsewhere is the path of `control`; the others lie beside it. native/session/doors.cpp makes the same.
 */
import { BobbinError } from '../model/index.js'

export const DOORS = ['control', 'leases', 'status'] as const
export type Door = (typeof DOORS)[number]

/** What a route needs. */
export type Right = Door

/** The rights that a door gives. */
const rightsAt: Readonly<Record<Door, readonly Right[]>> = {
  control: ['control', 'leases', 'status'],
  // A loader asks how large the store is.
  leases: ['leases', 'status'],
  status: ['status'],
}

/** The doors to try for a right, the strongest first. */
export const doorsFor: Readonly<Record<Right, readonly Door[]>> = {
  control: ['control'],
  leases: ['control', 'leases'],
  status: ['control', 'status'],
}

export const doorMode: Readonly<Record<Door, number>> = { control: 0o600, leases: 0o660, status: 0o660 }

/** sockaddr_un has 108 bytes for a path, with its final NUL. The one place that knows, beside the C++ struct itself. */
export const SOCKET_PATH_BYTES_MAX = 107

export function fitsSocket(path: string): boolean {
  return Buffer.byteLength(path) <= SOCKET_PATH_BYTES_MAX
}

/** `daemon.sock` → `daemon.leases.sock`. */
export function doorPath(controlPath: string, door: Door): string {
  if (door === 'control') return controlPath
  return `${controlPath.replace(/\.sock$/, '')}.${door}.sock`
}

/** What an owner of leases or room is called here: whoever comes through a shared door lets go nothing of others. */
export function ownerAt(door: Door, owner: string): string {
  return door === 'control' ? owner : `${door}/${owner}`
}

/** Did it come through a shared door? */
export function isShared(owner: string): boolean {
  return owner.includes('/')
}

/** Are there so many already that came through the same door as this one? So the group leaves room for the owner. */
export function isDoorFull(owners: Iterable<string>, owner: string, max: number): boolean {
  let count = 0
  for (const other of owners) if (isShared(other) === isShared(owner)) count++
  return count >= max
}

/** Where others may mount, it is bobbin-fuse that listens here (callers.ts). */
export function mountsPath(controlPath: string): string {
  return `${controlPath.replace(/\.sock$/, '')}.mounts.sock`
}

/** Whether a daemon with this path for `control` can have all of its doors. */
export function fitDoors(controlPath: string): boolean {
  return DOORS.every(door => fitsSocket(doorPath(controlPath, door)))
}

/** Why a door does not give a right, naming the one that does; `undefined`: it gives it. */
export function refusalOf(right: Right, door: Door, controlPath: string): BobbinError | undefined {
  if (rightsAt[door].includes(right)) return undefined
  const found = doorPath(controlPath, right)
  const whose = right === 'control' ? 'for the owner of the cache' : 'for the owner of the cache and its group'
  return new BobbinError(
    'ACCESS_DENIED',
    `the socket ${doorPath(controlPath, door)} does not give that right: it is ${whose}, at ${found}`,
  )
}
