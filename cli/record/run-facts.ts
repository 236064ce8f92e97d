/**
 * What is known of a run, as far as it came: the document `run.json`. It is read from folders that anybody may have made, so
 * it is checked against its schema, and whatever of it could leave its place (a path with `..`, a program's name) is refused.
 */
import { type Static, Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { parsePackageName } from '../../daemon/model/index.js'

const RUN_ID = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/
/** A merged record names folders after it. */
const HOST = /^[^/\0]*$/
const RunId = Type.String({ pattern: RUN_ID.source })
const Sha256 = Type.String({ pattern: '^[0-9a-f]{64}$' })
const Time = Type.String({ pattern: '^\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d(?:\\.\\d+)?Z$' })
const Texts = Type.Record(Type.String(), Type.String())
const OrNull = <T extends typeof Sha256>(schema: T) => Type.Union([schema, Type.Null()])

const Address = Type.Object({ registry: Type.String(), package: Type.String(), topHash: Sha256 })

const Mount = Type.Object({
  /** As it was typed. */
  asked: Type.String(),
  registry: Type.String(),
  package: Type.String(),
  topHash: Sha256,
  manifestSha256: Sha256,
  entries: Type.Integer(),
  bytes: Type.Integer(),
  /** Here. */
  mountpoint: Type.String({ pattern: '^/' }),
  /** Where the command sees it; the same as `mountpoint` without a container. */
  target: Type.String(),
  /** Which access log is this mount's. */
  mountedAt: Time,
  cacheDir: Type.String({ pattern: '^/' }),
  /** Rows of the manifest that no filesystem can show are left out; otherwise the package is refused. */
  quarantine: Type.Optional(Type.Boolean()),
  /** The overlay above it (--scratch), which is then at `target` (in containers: bound there); `mountpoint` is the package alone. */
  scratch: Type.Optional(
    Type.Object({
      folder: Type.String({ pattern: '^/' }),
      mountpoint: Type.String({ pattern: '^/' }),
      overlay: Type.Union([Type.Literal('kernel'), Type.Literal('fuse-overlayfs')]),
    }),
  ),
})

/** run/written.ts has the words. */
const Written = Type.Object({
  /** Of the mount above which it was written. */
  target: Type.String(),
  /** Where the files lie, here. */
  folder: Type.String({ pattern: '^/' }),
  /** `copied`: the bytes are still those of the package. */
  files: Type.Array(
    Type.Object({
      path: Type.String(),
      size: Type.Integer(),
      sha256: Sha256,
      change: Type.Union([Type.Literal('added'), Type.Literal('changed'), Type.Literal('copied')]),
    }),
  ),
  /** Files, and their bytes, beyond those. */
  filesMore: Type.Integer(),
  bytesMore: Type.Integer(),
  /** Keys of the package that were deleted, or replaced by what is not a file; folders end with a slash. Absent: not known. */
  hidden: Type.Optional(Type.Array(Type.String())),
  hiddenMore: Type.Optional(Type.Integer()),
})

/** run/image.ts has the words. */
const Image = Type.Object({
  asked: Type.String(),
  reference: Type.String(),
  digest: Type.String(),
  repository: OrNull(Type.String()),
  id: OrNull(Type.String()),
  platformManifest: OrNull(Type.String()),
  platform: Type.String(),
  localOnly: Type.Boolean(),
})

/** run/code.ts has the words. */
const Code = Type.Object({
  folder: Type.String(),
  commit: Type.String({ pattern: '^[0-9a-f]{40,64}$' }),
  tree: Type.String({ pattern: '^[0-9a-f]{40,64}$' }),
  ref: OrNull(Type.String()),
  remote: OrNull(Type.String()),
  isDirty: Type.Boolean(),
  untracked: Type.Integer(),
  diffSha256: OrNull(Sha256),
})

const Output = Type.Object({ path: Type.String(), size: Type.Integer(), sha256: Sha256 })

/** run/machine.ts has the words. */
const Machine = Type.Object({
  system: Type.String(),
  architecture: Type.String(),
  cpu: Type.String(),
  cpus: Type.Integer(),
  memoryBytes: Type.Integer(),
  /** None: an empty list. */
  gpus: Type.Array(
    Type.Object({ name: Type.String(), uuid: Type.String(), memoryBytes: Type.Optional(Type.Integer()) }),
  ),
  /** The version of the GPUs' driver; null: there is none. */
  driver: OrNull(Type.String()),
})

/** run/python.ts has the words. */
const Python = Type.Object({
  executable: Type.String(),
  /** `path`: the command is a shell or a launcher, so this is only the first Python that is found. */
  foundBy: Type.Union([Type.Literal('command'), Type.Literal('script'), Type.Literal('path')]),
  version: Type.String(),
  implementation: Type.String(),
  prefix: Type.String(),
  packages: Type.Array(
    Type.Object({
      name: Type.String(),
      version: Type.String(),
      /** Where it was installed from, when that was not an index. */
      url: Type.Optional(Type.String()),
      commit: Type.Optional(Type.String()),
    }),
  ),
})

/** run/source-trees.ts has the words. One of `code`, `sha256` and `unhashed`. */
const Tree = Type.Object({
  path: Type.String(),
  from: Type.Union([Type.Literal('PYTHONPATH'), Type.Literal('editable')]),
  code: Type.Optional(Code),
  /** Of a file, or of hashTree. */
  sha256: Type.Optional(Sha256),
  /** Why there is no hash. */
  unhashed: Type.Optional(Type.String()),
  /** The record's file with what differs from the commit. */
  diff: Type.Optional(Type.String({ pattern: '^tree-[0-9]{1,4}\\.diff$' })),
})

const Node = Type.Object({
  runId: RunId,
  host: Type.String({ pattern: HOST.source }),
  exitCode: Type.Union([Type.Integer(), Type.Null()]),
  statementSha256: Sha256,
  /** What it was given beside what all were given. */
  env: Texts,
  options: Type.Array(Type.String()),
})

const Schema = Type.Object({
  version: Type.Literal(1),
  runId: RunId,
  bobbin: Type.String(),
  /** Of the process that looks after it. */
  pid: Type.Integer(),
  /** When that process started, in ticks since the machine did: another one of this number has another time. */
  pidStart: Type.Optional(Type.String()),
  host: Type.String({ pattern: HOST.source }),
  engine: Type.Object({
    name: Type.Union([Type.Literal('host'), Type.Literal('docker'), Type.Literal('podman')]),
    version: Type.String(),
    imageStore: Type.Optional(Type.String()),
  }),
  command: Type.Array(Type.String()),
  /** What the user set, not what the environment held. */
  env: Texts,
  /** Names of variables whose values it got and the record has not. */
  passed: Type.Optional(Type.Array(Type.String())),
  machine: Type.Optional(Machine),
  /** Of a command that runs without a container. */
  python: Type.Optional(Python),
  /** Code outside of the recorded repository that the command may import. */
  sourceTrees: Type.Optional(Type.Array(Tree)),
  /** Docker's own, as given. */
  options: Type.Array(Type.String()),
  image: Type.Optional(Image),
  code: Type.Optional(Code),
  mounts: Type.Array(Mount),
  /** The mountpoint of one that is on its way. */
  mounting: Type.Optional(Type.String({ pattern: '^/' })),
  /** Folders that this run made for its mountpoints (run/made-folders.ts): it removes these alone. */
  madeFolders: Type.Optional(Type.Array(Type.Object({ path: Type.String({ pattern: '^/' }), stamp: Type.String() }))),
  /** Whose loader was it; null: there was none. */
  loaderSocket: OrNull(Type.String()),
  /** Where the command ran, below the code's folder; absolute where there is no code. In containers: the engine's business. */
  cwd: Type.Optional(Type.String()),
  /** Where the command wrote its outputs, here. */
  outputDir: Type.Optional(Type.String({ pattern: '^/' })),
  /** What lay there already; what of it is still the same is no output. */
  outputsBefore: Type.Optional(Texts),
  startedOn: Time,
  /** The command's end. */
  endedOn: Type.Optional(Time),
  /** The same, once the record is whole. */
  finishedOn: Type.Optional(Time),
  /** 128 + n: ended by a signal. */
  exitCode: Type.Optional(Type.Integer()),
  /** Nothing that was opened or delivered is missing from the logs, as far as we can know. */
  areLogsWhole: Type.Optional(Type.Boolean()),
  /** The process that looked after the run was gone before it was over. */
  wasAbandoned: Type.Optional(Type.Boolean()),
  outputs: Type.Optional(Type.Array(Output)),
  /** What the command hid of each mount with a scratch folder, as it was before the mounts went. */
  hidden: Type.Optional(
    Type.Array(Type.Object({ target: Type.String(), hidden: Type.Array(Type.String()), hiddenMore: Type.Integer() })),
  ),
  /** What the command wrote above its data: no part of them, and no output. */
  written: Type.Optional(Type.Array(Written)),
  /** Globs: which outputs are the result of the run, and decide whether it was reproduced; all of them where there are none. */
  outputGlobs: Type.Optional(Type.Array(Type.String())),
  /** What went wrong around the command, in words: a mount that ended, a full disk. What it did itself, its exit code says. */
  problems: Type.Optional(Type.Array(Type.String())),
  /** Packages that were read through the loader alone. */
  loaded: Type.Optional(Type.Array(Address)),
  /** Of a merged record. */
  nodes: Type.Optional(Type.Array(Node)),
})

type DeepReadonly<T> = T extends object ? { readonly [K in keyof T]: DeepReadonly<T[K]> } : T

export type RunFacts = DeepReadonly<Static<typeof Schema>>
export type RunMount = RunFacts['mounts'][number]

export function isRunId(text: string): boolean {
  return RUN_ID.test(text)
}

/** Of the text of a `run.json`. Undefined: it is damaged, or nothing of ours. */
export function parseFacts(text: string): RunFacts | undefined {
  let facts: unknown
  try {
    // Fields that the schema does not have may be of any shape, and whoever prints the facts would print them.
    facts = Value.Clean(Schema, JSON.parse(text))
    if (!Value.Check(Schema, facts)) return undefined
    for (const { package: name } of [...facts.mounts, ...(facts.loaded ?? [])]) parsePackageName(name)
  } catch {
    return undefined
  }
  const isInside = ({ path }: { readonly path: string }) =>
    !path.split('/').some(part => ['', '.', '..'].includes(part))
  const { outputs = [], written = [], mounts, startedOn, endedOn = startedOn, finishedOn = startedOn } = facts
  const times = [startedOn, endedOn, finishedOn, ...mounts.map(({ mountedAt }) => mountedAt)]
  const files = [...outputs, ...written.flatMap(one => one.files)]
  return files.every(isInside) && !times.map(Date.parse).some(Number.isNaN) ? facts : undefined
}

export function formatFacts(facts: RunFacts): string {
  return `${JSON.stringify(facts, undefined, 2)}\n`
}
