import { setDefaultDevice } from '../../lib/index.js'

/** ST_MOE_TEST_DEVICE runs the suite on another device: `cuda` with the plugin that ST_MOE_CUDA_LIBRARY names. */
setDefaultDevice((process.env.ST_MOE_TEST_DEVICE ?? 'cpu') as 'cpu')
