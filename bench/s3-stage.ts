/** Where Bobbin and quilt3 are measured beside each other: a real S3 server on this machine, with the bucket `bench`. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CreateBucketCommand, type S3Client } from '@aws-sdk/client-s3'
import { bobbinPath } from '../test/support/parts.js'
import { s3ClientOf, startS3 } from '../test/support/s3-server.js'
import { type Measured, median } from './measure.js'
import { type Series, secondsTable, type Table } from './report.js'

export class S3Stage {
  readonly #series = new Map<string, Measured[]>()
  #homes = 0

  private constructor(
    /** On the file system of `BENCH_DIR`, else of the temporary folder. */
    readonly folder: string,
    readonly client: S3Client,
    private readonly serverEnv: Readonly<Record<string, string>>,
  ) {}

  /** Ends the server and removes the folder when `run` is done. */
  static async with(run: (stage: S3Stage) => Promise<void>): Promise<void> {
    const folder = mkdtempSync(join(process.env.BENCH_DIR ?? tmpdir(), 'bobbin-bench-'))
    const server = await startS3('versitygw')
    const client = s3ClientOf(server)
    try {
      await client.send(new CreateBucketCommand({ Bucket: 'bench' }))
      await run(new S3Stage(folder, client, server.env))
    } finally {
      client.destroy()
      await server.stop()
      rmSync(folder, { recursive: true, force: true })
    }
  }

  /** The environment of a user who has no cache, of either. */
  freshEnv() {
    const home = join(this.folder, `home-${this.#homes++}`)
    return {
      ...process.env,
      ...this.serverEnv,
      HOME: home,
      XDG_DATA_HOME: join(home, 'data'),
      XDG_CACHE_HOME: join(home, 'cache'),
      BOBBIN_CACHE: join(home, 'bobbin'),
      QUILT_DISABLE_USAGE_METRICS: 'true',
      QUILT_MINIMIZE_STDOUT: 'true',
    }
  }

  bobbin(...args: string[]): string[] {
    return [process.execPath, bobbinPath, ...args]
  }

  record(what: string, measured: Measured): Measured {
    this.#series.set(what, [...this.#of(what), measured])
    process.stderr.write(`${what}: ${measured.seconds.toFixed(2)} s, ${measured.peakMiB.toFixed(0)} MiB\n`)
    return measured
  }

  /** Medians of what was recorded. */
  seconds(what: string): number {
    return median(this.#of(what).map(measured => measured.seconds))
  }

  peakMiB(what: string): number {
    return median(this.#of(what).map(measured => measured.peakMiB))
  }

  table(): Table {
    return secondsTable(
      [...this.#series].map(
        ([what, measured]): Series => ({
          what,
          seconds: measured.map(one => one.seconds),
          peakMiB: measured.map(one => one.peakMiB),
        }),
      ),
    )
  }

  #of(what: string): readonly Measured[] {
    return this.#series.get(what) ?? []
  }
}
