export {
  type BatchDataset,
  type Dataset,
  type RowsOf,
  type Stream,
  type TensorDataset,
  tensorDataset,
} from './dataset.js'
export { DataLoader, type DataLoaderOptions, type DataLoaderState } from './loader.js'
