// Mistakes in branches that no test of a default run took.
export default [
  {
    name: 'bucket-of-two-dtypes',
    file: 'lib/distributed/buckets.ts',
    from: '        bucket.parameters[0].dtype === parameter.dtype &&\n',
    to: '',
    breaks: 'gradients of float32 and float64 are joined',
    tests: ['test/distributed/expert-parallel.test.ts'],
  },
  {
    name: 'buffers-of-each-rank',
    file: 'lib/distributed/data-parallel.ts',
    from: 'new Set<Tensor>([...parameters, ...states])',
    to: 'new Set<Tensor>(states.size < 0 ? [...states] : parameters)',
    breaks: 'buffers stay as each rank made them',
    tests: ['test/distributed/expert-parallel.test.ts'],
  },
  {
    name: 'frozen-parameters-of-each-rank',
    file: 'lib/distributed/data-parallel.ts',
    from: 'if (among && among.size > 1) noGrad',
    to: 'if (among && among.size > 1 && tensor.requiresGrad) noGrad',
    breaks: 'frozen layers stay as each rank made them',
    tests: ['test/distributed/expert-parallel.test.ts'],
  },
]
