/**
 * The least that a program of this kind can do: GET every object below a prefix, 32 at a time over two
 * threads, hash it while it streams, and write it to a file. No manifest, no comparison, no retries.
 *
 *   node parallel-get.js DIR BUCKET PREFIX      (AWS_* in the environment)
 */
import { createHash, createHmac } from 'node:crypto'
import { createWriteStream, mkdirSync } from 'node:fs'
import { Agent, get } from 'node:http'
import { dirname, join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { ListObjectsV2Command, S3Client } from '@aws-sdk/client-s3'

const THREADS = 2
const AT_A_TIME = 16

interface Task {
  readonly folder: string
  readonly bucket: string
  readonly keys: readonly string[]
}

if (isMainThread) await main()
else await work(workerData as Task)

async function main(): Promise<void> {
  const [folder, bucket, prefix] = process.argv.slice(2) as [string, string, string]
  const client = new S3Client({ endpoint: process.env.AWS_ENDPOINT_URL!, forcePathStyle: true })
  const keys: string[] = []
  for (let token: string | undefined; ; ) {
    const page = await client.send(
      new ListObjectsV2Command({ Bucket: bucket, Prefix: prefix, ...(token && { ContinuationToken: token }) }),
    )
    keys.push(...(page.Contents ?? []).map(({ Key }) => Key!))
    token = page.NextContinuationToken
    if (token === undefined) break
  }
  await Promise.all(
    Array.from({ length: THREADS }, (_, thread) => {
      const task: Task = { folder, bucket, keys: keys.filter((_, i) => i % THREADS === thread) }
      const worker = new Worker(new URL(import.meta.url), { workerData: task })
      return new Promise<void>((resolve, reject) => {
        worker.once('error', reject)
        worker.once('exit', code => (code === 0 ? resolve() : reject(new Error(`a worker ended with ${code}`))))
      })
    }),
  )
}

async function work({ folder, bucket, keys }: Task): Promise<void> {
  const agent = new Agent({ keepAlive: true, maxSockets: AT_A_TIME })
  const endpoint = new URL(process.env.AWS_ENDPOINT_URL!)
  let next = 0
  await Promise.all(
    Array.from({ length: AT_A_TIME }, async () => {
      while (next < keys.length) {
        const key = keys[next++]!
        const path = join(folder, key)
        mkdirSync(dirname(path), { recursive: true })
        await fetchOne(agent, endpoint, `/${bucket}/${key}`, path)
      }
    }),
  )
  agent.destroy()
  parentPort?.close()
}

function fetchOne(agent: Agent, endpoint: URL, path: string, file: string): Promise<void> {
  return new Promise((resolve, reject) => {
    get(
      { agent, host: endpoint.hostname, port: endpoint.port, path, headers: signed(endpoint.host, path) },
      response => {
        if (response.statusCode !== 200) return reject(new Error(`${path}: ${response.statusCode}`))
        const hash = createHash('sha256')
        response.on('data', chunk => hash.update(chunk))
        pipeline(response, createWriteStream(file)).then(() => {
          hash.digest()
          resolve()
        }, reject)
      },
    ).once('error', reject)
  })
}

/** AWS Signature Version 4 of a GET without a query. */
function signed(host: string, path: string): Record<string, string> {
  const date = new Date().toISOString().replace(/[-:]|\.\d+/g, '')
  const day = date.slice(0, 8)
  const region = process.env.AWS_REGION!
  const empty = createHash('sha256').digest('hex')
  const names = 'host;x-amz-content-sha256;x-amz-date'
  const request = `GET\n${path}\n\nhost:${host}\nx-amz-content-sha256:${empty}\nx-amz-date:${date}\n\n${names}\n${empty}`
  const scope = `${day}/${region}/s3/aws4_request`
  const text = `AWS4-HMAC-SHA256\n${date}\n${scope}\n${createHash('sha256').update(request).digest('hex')}`
  const mac = (key: string | Buffer, data: string) => createHmac('sha256', key).update(data).digest()
  const key = [day, region, 's3', 'aws4_request'].reduce<string | Buffer>(
    mac,
    `AWS4${process.env.AWS_SECRET_ACCESS_KEY}`,
  )
  const credential = `${process.env.AWS_ACCESS_KEY_ID}/${scope}`
  return {
    'x-amz-content-sha256': empty,
    'x-amz-date': date,
    Authorization: `AWS4-HMAC-SHA256 Credential=${credential}, SignedHeaders=${names}, Signature=${createHmac(
      'sha256',
      key as Buffer,
    )
      .update(text)
      .digest('hex')}`,
  }
}
