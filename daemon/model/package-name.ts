import type { Brand } from './brand.js'
import { BobbinError } from './errors.js'

/** `namespace/name`, each of Unicode word characters and `-` (quilt3's rule, `^[\w-]+/[\w-]+$`). */
export type PackageName = Brand<string, 'PackageName'>

// Python's \w: letters, numbers of any kind, underscore. Python's `$` lets one trailing newline through, and so do we.
const PACKAGE_NAME = /^[\p{L}\p{N}_-]+\/[\p{L}\p{N}_-]+\n?$/u

export function isPackageName(text: string): text is PackageName {
  return PACKAGE_NAME.test(text)
}

export function parsePackageName(text: string): PackageName {
  if (!isPackageName(text)) {
    throw new BobbinError('INVALID_ARGUMENT', `not a package name (namespace/name): ${JSON.stringify(text)}`)
  }
  return text
}
