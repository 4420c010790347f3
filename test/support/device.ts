/**
 * ST_MOE_TEST_DEVICE runs the suite on another device: `cuda` with the plugin that ST_MOE_CUDA_LIBRARY names. Without
 * it nothing is loaded here, so that a test may replace modules first.
 */
if (process.env.ST_MOE_TEST_BUILT) {
  const [tested, built] = await Promise.all([import('../../lib/index.js'), import(import.meta.resolve('st-moe'))])
  if (tested.Tensor !== built.Tensor) throw new Error('ST_MOE_TEST_BUILT: the tests do not run on dist/')
}

const device = process.env.ST_MOE_TEST_DEVICE
if (device) {
  const { setDefaultDevice } = await import('../../lib/index.js')
  setDefaultDevice(device as 'cuda')
}
