"""Kafka and what speaks its protocol (Redpanda): events out, events in. The only importer of confluent_kafka.

Kafka carries, PostgreSQL knows: nothing here decides what is counted. Needs the extra `kafka`.
"""

from omninode_bridge.adapters.kafka.client import KafkaSettings
from omninode_bridge.adapters.kafka.publisher import KafkaPublisher
from omninode_bridge.adapters.kafka.subscription import KafkaSubscription

__all__ = ["KafkaPublisher", "KafkaSettings", "KafkaSubscription"]
