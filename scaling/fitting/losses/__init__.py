"""Laws of losses that are each at their best batch and rate: forms, averaged."""
