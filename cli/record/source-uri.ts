export interface SourcePlace {
  /** The URL of git's `origin`, without credentials; null: there is none. */
  readonly remote: string | null
  readonly folder: string
}

/** SPDX's form of a place in a repository: `git+https://…@ref`, or the folder where there is no remote. */
export function gitSourceUri({ remote, folder }: SourcePlace, ref: string | null): string {
  // scp's way of writing it is no URI.
  const scp = remote === null ? undefined : /^([\w.-]+@)?([\w.-]+):(?!\/\/)(.+)$/.exec(remote)
  const place = scp
    ? `ssh://${scp[1] ?? ''}${scp[2]}/${scp[3]}`
    : (remote ?? `file://${encodeURI(folder.toWellFormed())}`)
  return `git+${place.startsWith('/') ? `file://${place}` : place}${ref === null ? '' : `@${ref}`}`
}
