/** S3 as a `Source` and as a `RegistryWriter`, on real servers, with versions and without. */
import {
  CreateBucketCommand,
  DeleteObjectCommand,
  ListMultipartUploadsCommand,
  ListObjectsV2Command,
  PutBucketVersioningCommand,
  PutObjectCommand,
} from '@aws-sdk/client-s3'
import t, { type Test } from 'tap'
import { createSource } from '../../daemon/source/index.js'
import { createRegistryWriter } from '../../daemon/writer/index.js'
import { testRegistryWriter } from '../suites/registry-writer.js'
import { testSource } from '../suites/source.js'
import { s3ClientOf, startS3 } from '../support/s3-server.js'

for (const kind of ['versitygw', 'minio'] as const) {
  t.test(`S3 on ${kind}`, async t => {
    const server = await startS3(kind)
    const client = s3ClientOf(server)
    const before = { ...process.env }
    Object.assign(process.env, {
      HOME: t.testdir(),
      AWS_ENDPOINT_URL: server.endpoint,
      AWS_ACCESS_KEY_ID: server.accessKey,
      AWS_SECRET_ACCESS_KEY: server.secretKey,
    })
    t.teardown(async () => {
      for (const name of Object.keys(process.env)) delete process.env[name]
      Object.assign(process.env, before)
      client.destroy()
      await server.stop()
    })

    const place = async (t: Test, Bucket: string) => {
      await client.send(new CreateBucketCommand({ Bucket }))
      const config = { ioTimeoutMs: 10_000, cacheDir: t.testdir() }
      const [source, writer] = [createSource(config), createRegistryWriter({ kind: 's3', bucket: Bucket }, config)]
      t.teardown(async () => {
        source.close()
        await writer.close()
      })
      return {
        source,
        writer,
        keyOf: (key: string) => ({ kind: 's3' as const, bucket: Bucket, key }),
        async write(Key: string, Body: Uint8Array) {
          await client.send(new PutObjectCommand({ Bucket, Key, Body }))
        },
        async remove(Key: string) {
          await client.send(new DeleteObjectCommand({ Bucket, Key }))
        },
        async everything() {
          const { Contents = [] } = await client.send(new ListObjectsV2Command({ Bucket }))
          const { Uploads = [] } = await client.send(new ListMultipartUploadsCommand({ Bucket }))
          return [...Contents, ...Uploads].map(({ Key }) => Key ?? '')
        },
      }
    }

    t.test('is a Source', t => testSource(t, t => place(t, 'source')))
    t.test('is a RegistryWriter', t => testRegistryWriter(t, t => place(t, 'writer')))
    // versitygw keeps versions only with a folder for them, which it has not here.
    if (kind === 'minio')
      t.test('is a RegistryWriter that keeps versions', t =>
        testRegistryWriter(t, async t => {
          const made = await place(t, 'versions')
          const VersioningConfiguration = { Status: 'Enabled' as const }
          await client.send(new PutBucketVersioningCommand({ Bucket: 'versions', VersioningConfiguration }))
          return made
        }),
      )
  })
}
