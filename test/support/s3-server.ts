/** A real S3 server on a free loopback port, with a folder of its own; it ends with its owner. */
import { spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { S3Client } from '@aws-sdk/client-s3'
import { part } from './parts.js'

export type S3ServerKind = 'versitygw' | 'minio'

export interface S3Server {
  readonly kind: S3ServerKind
  readonly endpoint: string
  readonly accessKey: string
  readonly secretKey: string
  /** For any AWS client: endpoint, region, credentials. */
  readonly env: Readonly<Record<string, string>>
  stop(): Promise<void>
}

const ACCESS_KEY = 'bobbin-test'
const SECRET_KEY = 'bobbin-test-secret'
const START_MS = 20_000

export async function startS3(
  kind: S3ServerKind,
  { region = 'us-east-1' }: { readonly region?: string } = {},
): Promise<S3Server> {
  const folder = mkdtempSync(join(tmpdir(), `bobbin-${kind}-`))
  const port = await freePort()
  const { args, env } = commandLine(kind, folder, port, region)
  const log = join(folder, 'log')
  // Its own parent watch: when this process is killed, the pipe closes and the shell ends the server.
  const script = 'exec 9<&0; "$@" >"$LOG" 2>&1 </dev/null & server=$!; cat <&9 >/dev/null; kill $server; wait $server'
  const child = spawn('sh', ['-c', script, 'sh', part(kind), ...args], {
    stdio: ['pipe', 'ignore', 'inherit'],
    env: { PATH: process.env.PATH, HOME: folder, LOG: log, ...env },
  })
  const ended = new Promise<void>(resolve => child.once('exit', () => resolve()))
  const endpoint = `http://127.0.0.1:${port}`
  const stop = async () => {
    child.stdin.end()
    await ended
    rmSync(folder, { recursive: true, force: true })
  }
  const deadline = Date.now() + START_MS
  while (!(await answers(endpoint))) {
    if (Date.now() > deadline || child.exitCode !== null) {
      const said = readFileSync(log, 'utf8')
      await stop()
      throw new Error(`${kind} did not start: ${said}`)
    }
    await sleep(50)
  }
  return {
    kind,
    endpoint,
    accessKey: ACCESS_KEY,
    secretKey: SECRET_KEY,
    env: {
      AWS_ENDPOINT_URL: endpoint,
      AWS_REGION: region,
      AWS_DEFAULT_REGION: region,
      AWS_ACCESS_KEY_ID: ACCESS_KEY,
      AWS_SECRET_ACCESS_KEY: SECRET_KEY,
      // So that no client looks for a metadata address.
      AWS_EC2_METADATA_DISABLED: 'true',
    },
    stop,
  }
}

/** Signs as the server's owner. */
export function s3ClientOf({ endpoint, env, accessKey, secretKey }: S3Server): S3Client {
  return new S3Client({
    endpoint,
    region: env.AWS_REGION!,
    forcePathStyle: true,
    credentials: { accessKeyId: accessKey, secretAccessKey: secretKey },
  })
}

function commandLine(
  kind: S3ServerKind,
  folder: string,
  port: number,
  region: string,
): { args: string[]; env: Record<string, string> } {
  const inFolder = (name: string) => {
    mkdirSync(join(folder, name))
    return join(folder, name)
  }
  switch (kind) {
    case 'versitygw':
      return {
        args: [
          ...['--port', `127.0.0.1:${port}`, '--region', region, '--keep-alive', '--quiet'],
          ...['--iam-dir', inFolder('iam')],
          ...['posix', '--versioning-dir', inFolder('versions'), inFolder('data')],
        ],
        env: { ROOT_ACCESS_KEY: ACCESS_KEY, ROOT_SECRET_KEY: SECRET_KEY },
      }
    case 'minio':
      return {
        args: ['server', '--quiet', '--address', `127.0.0.1:${port}`, inFolder('data')],
        env: {
          MINIO_ROOT_USER: ACCESS_KEY,
          MINIO_ROOT_PASSWORD: SECRET_KEY,
          MINIO_REGION: region,
          MINIO_BROWSER: 'off',
          MINIO_UPDATE: 'off',
        },
      }
    default:
      return kind satisfies never
  }
}

async function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer()
    server.once('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number }
      server.close(() => resolve(port))
    })
  })
}

/** Any answer will do; minio says 503 until it is ready. */
async function answers(endpoint: string): Promise<boolean> {
  try {
    const response = await fetch(endpoint)
    await response.body?.cancel()
    return response.status < 500
  } catch {
    return false
  }
}
