"""``moeline evaluate``: any model folder, or a served model, on Foundry's suites. Needs neither platform nor Airflow.

model.py says which model it is and loads it; questions.py what is asked; answers.py keeps every answer (journal and cache); command.py puts
them together; writing.py writes scores.json, responses.parquet and report.md.
"""
