/**
 * The two statements of a run (in-toto Statement v1): provenance (SLSA v1) of what it was made from, and the reads
 * (runtime-trace v0.1). Sources: slsa.dev/spec/v1.0/provenance, in-toto/attestation spec/v1 and spec/predicates.
 *
 * Digests: `sha256` is of the named bytes themselves. A top hash is not that of any file, so it has a name of its own,
 * `quiltTopHash`, beside the manifest's `sha256`; entries' chunked hashes are `quiltSha256Chunked` (lower-case hex).
 */

import { LEDGER_HEAD_MAX, type Ledger, type LedgerFacts } from './ledger.js'
import type { LedgerRow } from './ledger-row.js'
import type { RunFacts, RunMount } from './run-facts.js'
import { gitSourceUri } from './source-uri.js'

type SourceTree = NonNullable<RunFacts['sourceTrees']>[number]

/** Names, not addresses: nothing is fetched from there. */
const PROJECT = 'https://bobbin.invalid'
export const BUILD_TYPE = `${PROJECT}/buildtypes/container-training-run/v1`
export const PROVENANCE_TYPE = 'https://slsa.dev/provenance/v1'
export const TRACE_TYPE = 'https://in-toto.io/attestation/runtime-trace/v0.1'
const STATEMENT_TYPE = 'https://in-toto.io/Statement/v1'

export interface ResourceDescriptor {
  readonly name?: string
  readonly uri?: string
  readonly digest?: Readonly<Record<string, string>>
  readonly content?: string
  readonly mediaType?: string
  readonly annotations?: Readonly<Record<string, unknown>>
}

export interface Statement {
  readonly _type: typeof STATEMENT_TYPE
  readonly subject: readonly ResourceDescriptor[]
  readonly predicateType: string
  readonly predicate: Readonly<Record<string, unknown>>
}

export interface Evidence {
  readonly ledger: LedgerFacts
  /** Nothing that was read is missing from it, as far as we can know. */
  readonly isComplete: boolean
  /** By file name; SHA-256, hex. */
  readonly files: ReadonlyMap<string, string>
}

export function provenance(run: RunFacts, { ledger, isComplete, files }: Evidence): Statement {
  const reads: ResourceDescriptor = {
    name: 'reads.jsonl',
    digest: { sha256: ledger.sha256 },
    mediaType: 'application/jsonl',
  }
  const outputs = (run.outputs ?? []).map(({ path, size, sha256 }): ResourceDescriptor => {
    return { name: `outputs/${path}`, digest: { sha256 }, annotations: { size } }
  })
  const { entriesRead, bytesRead, merkleRoot } = ledger
  const kept = ['run.json', 'stdout.log', 'stderr.log', ...diffNames(run)].flatMap((name): ResourceDescriptor[] => {
    const sha256 = files.get(name)
    return sha256 === undefined ? [] : [{ name, uri: `file:${name}`, digest: { sha256 } }]
  })
  return {
    _type: STATEMENT_TYPE,
    subject: [...outputs, reads],
    predicateType: PROVENANCE_TYPE,
    predicate: {
      buildDefinition: {
        buildType: BUILD_TYPE,
        externalParameters: {
          command: run.command,
          ...(run.image !== undefined && { image: run.image.asked }),
          ...(run.code !== undefined && { source: gitSourceUri(run.code, run.code.ref) }),
          datasets: Object.fromEntries(run.mounts.map(mount => [mount.target, mount.asked])),
          env: run.env,
          ...(run.passed !== undefined && { envNames: run.passed }),
          options: run.options,
          ...(run.mounts.some(({ scratch }) => scratch !== undefined) && { scratch: true }),
        },
        internalParameters: {
          host: run.host,
          runtime: run.engine,
          ...(run.machine !== undefined && { machine: run.machine }),
          ...(run.python !== undefined && { python: run.python }),
          mountOptions: run.engine.name === 'host' ? 'ro' : 'ro,rslave',
          verification: 'every-entry-on-fetch',
          ...(run.outputGlobs !== undefined && { outputGlobs: run.outputGlobs }),
          ...(run.nodes !== undefined && { nodes: run.nodes }),
        },
        resolvedDependencies: [
          ...(run.code === undefined ? [] : [sourceOf(run)]),
          ...(run.sourceTrees ?? []).map(treeOf),
          ...(run.image === undefined ? [] : [imageOf(run)]),
          ...run.mounts.map(datasetOf),
          ...(run.loaded ?? []).map(({ registry, package: name, topHash }) => {
            return { name: 'dataset', uri: packageUri(registry, name, topHash), digest: { quiltTopHash: topHash } }
          }),
          {
            name: 'reads',
            uri: 'file:reads.jsonl',
            digest: { sha256: ledger.sha256 },
            annotations: { entriesRead, bytesRead, merkleRoot, complete: isComplete },
          },
        ],
      },
      runDetails: {
        builder: { id: `${PROJECT}/runner@v1`, version: { bobbin: run.bobbin, [run.engine.name]: run.engine.version } },
        metadata: {
          invocationId: run.runId,
          startedOn: run.startedOn,
          ...(run.finishedOn !== undefined && { finishedOn: run.finishedOn }),
        },
        byproducts: [...kept, exitOf(run), ...(run.written ?? []).flatMap(writtenOf)],
      },
    },
  }
}

/** What was written above a mount is neither data nor a subject: run.json lists it, which is named by its hash. */
function writtenOf({ target, files, filesMore, hidden, hiddenMore = 0 }: NonNullable<RunFacts['written']>[number]) {
  const changed = files.filter(({ change }) => change === 'changed').length
  const annotations = {
    target,
    files: files.length + filesMore,
    changed,
    ...(hidden !== undefined && { hidden: hidden.length + hiddenMore }),
  }
  return [{ name: 'written', annotations } satisfies ResourceDescriptor]
}

/** Files of a record that say what code differs in from its commit. */
export function diffNames({ sourceTrees = [] }: RunFacts): string[] {
  return ['source.diff', ...sourceTrees.flatMap(({ diff }) => diff ?? [])]
}

function treeOf({ path, from, code, sha256, unhashed, diff }: SourceTree): ResourceDescriptor {
  const facts = { from, path, ...(diff !== undefined && { diff }), ...(unhashed !== undefined && { unhashed }) }
  if (code !== undefined) {
    const source = sourceOf({ code })
    return { ...source, name: 'import', annotations: { ...source.annotations, ...facts } }
  }
  const uri = `file://${encodeURI(path.toWellFormed())}`
  return {
    name: 'import',
    uri,
    ...(sha256 !== undefined && { digest: { bobbinTreeSha256: sha256 } }),
    annotations: facts,
  }
}

function sourceOf({ code }: Pick<RunFacts, 'code'>): ResourceDescriptor {
  const { commit, tree, isDirty, untracked, diffSha256 } = code!
  return {
    name: 'source',
    uri: gitSourceUri(code!, commit),
    digest: { gitCommit: commit, gitTree: tree },
    annotations: { dirty: isDirty, untracked, ...(diffSha256 !== null && { diffSha256 }) },
  }
}

/** A package URL of type `oci`: the name's last part, the digest, and where it is. */
function imageOf({ image }: RunFacts): ResourceDescriptor {
  const { repository, digest, asked, id, platform, platformManifest, localOnly } = image!
  const name = (repository ?? asked.split('@')[0]!).split('/').at(-1)!.replace(/:.*$/, '')
  const tag = /:([\w.-]+)$/.exec(asked.split('@')[0]!)?.[1]
  const query = new URLSearchParams({
    ...(repository !== null && { repository_url: repository }),
    ...(tag !== undefined && { tag }),
  })
  return {
    name: 'image',
    uri: `pkg:oci/${encodeURIComponent(name.toLowerCase().toWellFormed())}@${encodeURIComponent(digest.toWellFormed())}${query.size > 0 ? `?${query}` : ''}`,
    digest: { sha256: digest.replace(/^sha256:/, '') },
    annotations: { configId: id, platform, platformManifest, localOnly },
  }
}

function datasetOf({
  registry,
  package: name,
  topHash,
  manifestSha256,
  entries,
  bytes,
  target,
}: RunMount): ResourceDescriptor {
  return {
    name: 'dataset',
    uri: packageUri(registry, name, topHash),
    digest: { quiltTopHash: topHash, sha256: manifestSha256 },
    mediaType: 'application/jsonl',
    annotations: { entries, bytes, target },
  }
}

/** The Quilt+ URI of a bucket's package; a folder's has none, so it is the reference that we take. */
export function packageUri(registry: string, name: string, topHash: string): string {
  return registry.startsWith('s3://')
    ? `quilt+${registry}#package=${name}@${topHash}`
    : `${registry}/${name}@${topHash}`
}

function exitOf({ exitCode, wasAbandoned, problems = [] }: RunFacts): ResourceDescriptor {
  const document = { code: exitCode ?? null, killed: wasAbandoned ?? false, ...(problems.length > 0 && { problems }) }
  return {
    name: 'exit',
    content: Buffer.from(JSON.stringify(document)).toString('base64'),
    mediaType: 'application/json',
  }
}

/** A ledger that is longer than its head is named by its digest alone. */
export function trace(run: RunFacts, { facts: ledger, head }: Ledger): Statement {
  const isInline = ledger.rows <= LEDGER_HEAD_MAX
  const registries = new Map(
    [...run.mounts, ...(run.loaded ?? [])].map(one => [`${one.package}@${one.topHash}`, one.registry]),
  )
  return {
    _type: STATEMENT_TYPE,
    subject: [{ name: 'reads.jsonl', digest: { sha256: ledger.sha256 } }],
    predicateType: TRACE_TYPE,
    predicate: {
      monitor: {
        type: `${PROJECT}/monitors/fuse-and-sidecar/v1`,
        configSource: {},
        tracePolicy: { granularity: 'entry', dedupe: true },
      },
      monitoredProcess: { hostID: run.host, type: BUILD_TYPE, event: run.runId },
      monitorLog: {
        process: [],
        network: [],
        fileAccess: isInline
          ? head.map(row => accessOf(row, registries.get(`${row.package}@${row.topHash}`)))
          : [
              {
                name: 'reads.jsonl',
                uri: 'file:reads.jsonl',
                digest: { sha256: ledger.sha256 },
                annotations: { merkleRoot: ledger.merkleRoot, entriesRead: ledger.entriesRead },
              },
            ],
      },
      metadata: {
        buildStartedOn: run.startedOn,
        ...(run.finishedOn !== undefined && { buildFinishedOn: run.finishedOn }),
      },
    },
  }
}

const DIGEST_NAMES: Readonly<Record<string, string>> = {
  SHA256: 'sha256',
  'sha2-256-chunked': 'quiltSha256Chunked',
  CRC64NVME: 'crc64Nvme',
}

function accessOf(row: LedgerRow, registry: string | undefined): ResourceDescriptor {
  const { key, hashType, hash, size, via, first, count, aborted } = row
  const uri = `${packageUri(registry ?? 'unknown:', row.package, row.topHash)}${registry?.startsWith('s3://') ? '&path=' : '/'}${encodeURI(key.toWellFormed())}`
  return {
    name: key,
    uri,
    digest: { [DIGEST_NAMES[hashType] ?? hashType]: hash },
    annotations: { size, via, first, count, ...(aborted > 0 && { aborted }), verified: 'fetch' },
  }
}
