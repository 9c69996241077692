"""What must hold whatever is rebuilt:

 1. The sampler's logprobs are the trainer's.                                    test_sampler
 2. A completion does not depend on its neighbours, slots or order.              test_sampler
 3. The packed gradient is the gradient of plain padded rows.                    test_gradients
 4. Micro-batching changes nothing.                                              test_gradients
 5. Skipping zero-signal groups leaves the gradient as it was.                   test_gradients
 6. On the first update the ratio is 1, nothing is clipped, and the gradient is
    REINFORCE's.                                                                 test_gradients
 7. Adapter off is the base model, bit for bit; so is the KL at step 0.          test_gradients
 8. Two ranks are one rank.                                                      test_ranks
 9. The same seed gives the same metrics; a resumed run is one never stopped.    test_runs
10. A saved adapter is the policy for plain transformers and peft.               test_runs

Adapters under test have a large random B: at B = 0 a sampler that ignores the adapter passes.
"""
