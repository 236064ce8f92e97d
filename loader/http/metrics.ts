/** For Prometheus. */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client'

export interface Gauges {
  readonly streams: () => number
  readonly leases: () => number
  readonly pathLeases: () => number
  readonly aheadBytes: () => number
  readonly residentBytes: () => number
}

export class Metrics {
  readonly #registry = new Registry()
  readonly #seconds: Histogram<'route' | 'status'>
  readonly #samples: Counter<'as' | 'outcome'>
  readonly #bytes: Counter<'as' | 'outcome'>
  readonly #waits: Histogram

  constructor(gauges: Gauges) {
    const registers = [this.#registry]
    collectDefaultMetrics({ register: this.#registry, prefix: 'bobbin_loader_' })
    this.#seconds = new Histogram({
      name: 'bobbin_loader_answer_seconds',
      help: 'From the request to the last byte of the answer',
      labelNames: ['route', 'status'],
      buckets: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30],
      registers,
    })
    this.#waits = new Histogram({
      name: 'bobbin_loader_step_wait_seconds',
      help: 'How long a request waited until its first step was here: above zero, the link is too slow for the training',
      buckets: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30],
      registers,
    })
    this.#samples = new Counter({
      name: 'bobbin_loader_samples_total',
      help: 'Samples in answers',
      labelNames: ['as', 'outcome'],
      registers,
    })
    this.#bytes = new Counter({
      name: 'bobbin_loader_sample_bytes_total',
      help: 'Bytes of the files of these samples',
      labelNames: ['as', 'outcome'],
      registers,
    })
    const gauge = (name: string, help: string, value: () => number) =>
      new Gauge({
        name: `bobbin_loader_${name}`,
        help,
        registers,
        collect() {
          this.set(value())
        },
      })
    gauge('streams', 'Answers under way', gauges.streams)
    gauge('leases', 'Leases that the daemon holds for us', gauges.leases)
    gauge('path_leases', 'Steps whose paths clients hold', gauges.pathLeases)
    gauge('ahead_bytes', 'Leased ahead of the order', gauges.aheadBytes)
    gauge('resident_bytes', 'Leased beyond their steps, for the next epoch', gauges.residentBytes)
  }

  answered(route: string, status: number, ms: number): void {
    this.#seconds.observe({ route, status: String(status) }, ms / 1000)
  }

  waited(ms: number): void {
    this.#waits.observe(ms / 1000)
  }

  delivered(as: 'tar' | 'paths', outcome: 'delivered' | 'aborted', samples: number, bytes: number): void {
    this.#samples.inc({ as, outcome }, samples)
    this.#bytes.inc({ as, outcome }, bytes)
  }

  get contentType(): string {
    return this.#registry.contentType
  }

  text(): Promise<string> {
    return this.#registry.metrics()
  }
}
