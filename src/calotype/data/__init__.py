"""Folders of pictures: reading, captions, aspect buckets, the split into three sets, batches, caches."""
