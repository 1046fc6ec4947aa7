"""Put a directory in the place of what carries SpecForge's online training from its rollouts to its trainers.

    store = SharedFeatureStore("/shared/run/features")                    # in each producer
    refs = channel("/shared/run", producer="rollout-0", expected=2)
    workers, drive = specforge.launch.build_disagg_online_producer(channel=refs, feature_store=store, ...)

    store = SharedFeatureStore("/shared/run/features", retain_on_release=True)        # in each rank
    trainer = build_online_consumer(channel=channel("/shared/run"), feature_store=store, ...)
    trainer.fit()

Any number of producers and ranks are processes on any nodes, and any of them may be killed. One directory is queue,
ledger and stream: there is no distributor, no inbox and no rank whose files the others need. Made for SpecForge 0.2.
"""

from fsqueue.lazy import needed_by

with needed_by(__name__, "specforge", "specforge", "torch"):
    from fsqueue.integrations.specforge.consumer import build_online_consumer
    from fsqueue.integrations.specforge.controller import ConsumerSetupError, OnlineController
    from fsqueue.integrations.specforge.refs import Publication, RefChannel, channel
    from fsqueue.integrations.specforge.rollout import RolloutSource
    from fsqueue.integrations.specforge.store import NoFeaturesError, SharedFeatureStore

__all__ = [
    "ConsumerSetupError",
    "NoFeaturesError",
    "OnlineController",
    "Publication",
    "RefChannel",
    "RolloutSource",
    "SharedFeatureStore",
    "build_online_consumer",
    "channel",
]
