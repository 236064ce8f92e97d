/**
 * Hidden folders for files that are under way, made in folders of users. Several machines may share such a folder, so a name says
 * which process of which machine made it: what a process of another machine has under way is not ours to remove.
 */
import { randomBytes } from 'node:crypto'
import { hostname } from 'node:os'
import { isAlive } from './index.js'

const NAME = /^\.bobbin-([A-Za-z0-9.]*)-(\d+)-[0-9a-f]{12}$/

function thisMachine(): string {
  return hostname().replace(/[^A-Za-z0-9.]/g, '')
}

export function temporaryFolderName(): string {
  return `.bobbin-${thisMachine()}-${process.pid}-${randomBytes(6).toString('hex')}`
}

/** Was it made by a process of this machine that is gone? */
export function isLeftover(name: string): boolean {
  const [, machine, pid] = NAME.exec(name) ?? []
  return machine === thisMachine() && !isAlive(Number(pid))
}
