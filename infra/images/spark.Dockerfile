# Spark Connect and its executors: docker build -f infra/images/spark.Dockerfile --build-arg CONTROL=moeline-control@sha256:... -t moeline-spark:0.1.0 .
# The same Python environment as the stages, because stages send functions to the executors; a Java runtime and the Delta JARs besides.
# A mirror of the JARs: --secret id=ivy,src=ivysettings.xml
ARG CONTROL=moeline-control:0.1.0

FROM ${CONTROL} AS jars
USER 0:0
ENV MOELINE_IVY_SETTINGS=/run/secrets/ivy
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openjdk-17-jdk-headless=17.0.* \
    && rm -rf /var/lib/apt/lists/*
# Every JAR is held against infra/local/jars.sha256.
RUN --mount=type=secret,id=ivy \
    if [ ! -e "$MOELINE_IVY_SETTINGS" ]; then unset MOELINE_IVY_SETTINGS; fi; python -m jobs.services.jars
USER 10001:10001

FROM ${CONTROL}
USER 0:0
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openjdk-17-jre-headless=17.0.* \
    && rm -rf /var/lib/apt/lists/* \
    && ln -s /usr/lib/jvm/java-17-openjdk-* /opt/java \
    && ln -s /opt/venv/lib/python3.11/site-packages/pyspark /opt/spark
# On the class path of driver and executors alike, so nothing is sent around.
COPY --from=jars /opt/moeline/.jars/ /opt/venv/lib/python3.11/site-packages/pyspark/jars/
ENV JAVA_HOME=/opt/java SPARK_HOME=/opt/spark PYSPARK_PYTHON=/opt/venv/bin/python
USER 10001:10001
HEALTHCHECK NONE
CMD ["python", "-m", "infra.images.spark_executor", "executor"]
