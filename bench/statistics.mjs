import { BOOT, FLOORS, H2, OURS, PEERS, SHARED } from './options.mjs'

export const [F, W] = FLOORS
export { OURS, PEERS }
export const [SHARED_OURS, PUBSUB] = SHARED
export const [H2_OURS, H2_FLOOR] = H2

export function median (values) {
  const sorted = values.filter(value => typeof value === 'number' && !Number.isNaN(value)).sort((a, b) => a - b)
  if (sorted.length === 0) return null
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

/** Reads the samples of a run: medians, and medians of ratios within the same round. */
export class Statistics {
  #samples

  constructor ({ samples }) {
    this.#samples = samples
  }

  get scenarios () {
    return [...new Set(this.#samples.map(sample => sample.scenario))]
  }

  implementations (scenario) {
    return [...new Set([F, W, OURS, ...BOOT, ...PEERS, ...SHARED, ...H2])].filter(implementation => this.samples(scenario, implementation).length > 0)
  }

  samples (scenario, implementation) {
    return this.#samples.filter(sample => sample.scenario === scenario && sample.implementation === implementation)
  }

  value (scenario, implementation, metric) {
    return median(this.samples(scenario, implementation).map(sample => sample[metric]))
  }

  /** `implementation` against `base`; null when one of them is missing. */
  ratio (scenario, metric, implementation, base) {
    const bases = new Map(this.samples(scenario, base).map(sample => [sample.round, sample[metric]]))
    return median(this.samples(scenario, implementation).filter(sample => bases.has(sample.round)).map(sample => sample[metric] / bases.get(sample.round)))
  }

  /** How much `implementation` has more than `base`, as above. */
  difference (scenario, metric, implementation, base) {
    const bases = new Map(this.samples(scenario, base).map(sample => [sample.round, sample[metric]]))
    return median(this.samples(scenario, implementation).filter(sample => bases.has(sample.round)).map(sample => sample[metric] - bases.get(sample.round)))
  }

  /** Ours against the peer that does best: the worst of our ratios. */
  ratioToBestPeer (scenario, metric, { higherIsBetter = false } = {}) {
    const ratios = PEERS.map(peer => this.ratio(scenario, metric, OURS, peer)).filter(ratio => ratio !== null)
    if (ratios.length === 0) return null
    return higherIsBetter ? Math.min(...ratios) : Math.max(...ratios)
  }
}
