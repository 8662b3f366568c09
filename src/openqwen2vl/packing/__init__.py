"""From documents to packs to batches: lengths, bins, plan, writer, reader, order, batch."""
